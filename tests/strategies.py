"""Random graphs, circuits and small Vision Transformers for hypothesis; the same seed gives the same value."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from vitsparse.circuit import GRANULARITIES, Circuit, Graph
from vitsparse.circuit.liveness import depends_on_input
from vitsparse.evaluation.ablation import Ablation
from vitsparse.model.config import ViTConfig
from vitsparse.model.vit import ViT

SEEDS = st.integers(0, 2**31 - 1)
KINDS = ("full", "dense", "sparse", "dead parts", "constant", "empty")


@st.composite
def graphs(draw, *, depth: int | None = None, heads: int | None = None) -> Graph:
    """Graphs of every granularity, with and without MLP groups; of the given sizes or small ones."""
    return Graph(depth or draw(st.integers(1, 4)), heads or draw(st.integers(1, 5)),
                 draw(st.sampled_from(GRANULARITIES)), draw(st.integers(1, 3)))


def graphs_of(config: ViTConfig) -> st.SearchStrategy[Graph]:
    """Graphs that fit a model of shape ``config``."""
    return graphs(depth=config.depth, heads=config.num_heads)


@st.composite
def configs(draw) -> ViTConfig:
    """Shapes that fit no tile: head width 5, 8 or 20; 10 or 17 tokens; both pools; LayerScale and qkv bias or not."""
    heads = draw(st.integers(1, 3))
    return ViTConfig(
        img_size=draw(st.sampled_from((6, 8))), patch_size=2, in_chans=draw(st.sampled_from((1, 3))), num_classes=5,
        embed_dim=heads * draw(st.sampled_from((5, 8, 20))), depth=draw(st.integers(1, 3)), num_heads=heads,
        mlp_ratio=draw(st.sampled_from((1.2, 2.0))), qkv_bias=draw(st.booleans()),
        init_values=draw(st.sampled_from((None, 0.5))), global_pool=draw(st.sampled_from(("token", "avg"))))


def make_model(config: ViTConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> ViT:
    """A ViT in eval mode whose logits really vary: every parameter is drawn, and none is small."""
    generator = torch.Generator().manual_seed(seed)
    model = ViT(**config.to_dict(), dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim == 1:  # biases around 0; norms and LayerScale around 1
                values = 0.3 * values + (0.0 if name.endswith("bias") else 1.0)
            elif name not in ("cls_token", "pos_embed"):
                values *= 1.5 / parameter[0].numel() ** 0.5
            parameter.copy_(values)
    return model.to(dtype).eval()


def make_images(config: ViTConfig, count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images [count, C, S, S] of standard normal noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, config.in_chans, config.img_size, config.img_size)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def make_batches(config: ViTConfig, sizes: tuple[int, ...] = (3, 2), seed: int = 0,
                 dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Re-iterable batches of the given sizes, with random labels."""
    generator = torch.Generator().manual_seed(seed)
    return [(make_images(config, size, seed + 1 + index, dtype),
             torch.randint(config.num_classes, (size,), generator=generator)) for index, size in enumerate(sizes)]


def make_ablation(model: ViT, graph: Graph, kind: str, seed: int = 0) -> Ablation:
    """A ``zero`` or ``mean`` ablation; the mean is over a few random images."""
    if kind == "zero":
        return Ablation.zero(model, graph)
    dtype = next(model.parameters()).dtype
    return Ablation.mean(model, make_batches(model.config, (4,), seed, dtype), graph)


def make_circuit(graph: Graph, kind: str, seed: int = 0) -> Circuit:
    """One of :data:`KINDS`. All but ``constant`` and ``empty`` are redrawn until the output depends on the image."""
    rng = np.random.default_rng(seed)
    while True:
        keep = rng.random(graph.num_edges) < {"full": 1.1, "dense": 0.9, "empty": 0.0}.get(kind, 0.4)
        if kind == "dead parts":
            keep = _without(graph, keep | (rng.random(graph.num_edges) < 0.6), rng)
        if kind == "constant":
            for reader in graph.reader_nodes:
                keep[reader.first_edge] = False  # the edge from `input`
        if kind in ("constant", "empty") or _varies(graph, keep):
            return Circuit(graph, keep)


def _without(graph: Graph, keep: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``keep`` without any edge out of about half of the heads and MLPs."""
    gone = rng.random(len(graph.senders)) < 0.5
    gone[0] = False
    return np.concatenate([keep[reader.edges] & ~gone[: reader.fan_in] for reader in graph.reader_nodes])


def _varies(graph: Graph, keep: np.ndarray) -> bool:
    return bool((keep[graph.reader_nodes[-1].edges] & depends_on_input(graph, keep)).any())


@st.composite
def circuits(draw, graph: Graph, *, kinds: tuple[str, ...] = KINDS) -> Circuit:
    """Circuits of ``graph``: full, dense, sparse, with dead parts, constant, empty."""
    return make_circuit(graph, draw(st.sampled_from(kinds)), draw(SEEDS))
