"""Random models with a circuit, an ablation and images, and the float64 edge-wise forward they must equal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.strategies import (
    KINDS,
    SEEDS,
    circuits,
    configs,
    graphs_of,
    make_ablation,
    make_circuit,
    make_images,
    make_model,
)
from vitsparse.backends import native
from vitsparse.circuit import Circuit, Graph
from vitsparse.compiler import sparsify
from vitsparse.compiler.sparse_vit import SparseViT
from vitsparse.evaluation.ablation import Ablation
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import edgewise_forward
from vitsparse.model.vit import ViT
from vitsparse.ops.backend import why_not

BACKENDS = ("reference", "torch", *(["cpu"] if native.available("cpu") else []))
CONFIG = ViTConfig(img_size=8, patch_size=2, in_chans=3, num_classes=5, embed_dim=24, depth=2, num_heads=3,
                   init_values=0.5)
needs_cpu = pytest.mark.skipif("cpu" not in BACKENDS, reason="; ".join(why_not("cpu", "cpu")))


@dataclass(frozen=True)
class Case:
    model: ViT
    circuit: Circuit
    ablation: Ablation
    images: Tensor

    @cached_property
    def exact(self) -> Tensor:
        """Logits of the edge-wise forward in float64."""
        return edgewise(self.model, self)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        return {key: value.detach() for key, value in self.model.state_dict().items()}

    def sparse(self, backend: str = "torch", **options) -> SparseViT:
        return sparsify(self.model, self.circuit, ablation=self.ablation, backend=backend, **options)


@torch.no_grad()
def edgewise(model: ViT, case: Case) -> Tensor:
    """Edge-wise logits, in float64, of ``case`` with the weights of ``model``."""
    wide = ViT(**model.config.to_dict(), dtype=torch.float64)
    wide.load_state_dict({key: value.double() for key, value in model.state_dict().items()})
    return edgewise_forward(wide.eval(), case.images.double(), case.circuit.keep, graph=case.circuit.graph,
                            ablation=case.ablation)


@st.composite
def cases(draw, *, dtype: torch.dtype = torch.float32, kinds: tuple[str, ...] = KINDS,
          ablations: tuple[str, ...] = ("zero", "mean")) -> Case:
    """Any small model, granularity, circuit and ablation; one to three images."""
    config, seed = draw(configs()), draw(SEEDS)
    model = make_model(config, seed, dtype)
    graph = draw(graphs_of(config))
    ablation = make_ablation(model, graph, draw(st.sampled_from(ablations)), seed)
    circuit = draw(circuits(graph, kinds=kinds))
    return Case(model, circuit, ablation, make_images(config, draw(st.integers(1, 3)), seed, dtype))


def case_of(kind: str = "sparse", ablation: str = "mean", *, dtype: torch.dtype = torch.float32, seed: int = 3,
            graph: Graph | None = None, config: ViTConfig = CONFIG) -> Case:
    """One case by name: three images, and by default a graph with two MLP groups."""
    model = make_model(config, seed, dtype)
    graph = graph or Graph(config.depth, config.num_heads, mlp_groups=2)
    return Case(model, make_circuit(graph, kind, seed), make_ablation(model, graph, ablation),
                make_images(config, 3, seed, dtype))
