"""Random models and circuits of theirs: what a device is measured on, and what predictions are judged on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..circuit.circuit import Circuit
from ..circuit.graph import Graph
from ..circuit.liveness import depends_on_input, reaches_logits
from ..model.config import ViTConfig
from .plan import dense_flops

WIDTHS, DEPTHS, SIDES = (64, 128, 192, 256, 384), (2, 3, 4, 6, 8, 10), (4, 5, 7, 8, 10, 12, 14)
PATCHES, HEAD_WIDTHS, CLASSES = (4, 8, 16), (32, 64), (10, 200, 1000)
KINDS = ("full", "dead nodes", "lean", "cut edges", "cut edges", "dead nodes and cut edges", "dead nodes and cut edges")
LARGEST = 1.4e9
"""FLOPs of the largest model: one that a core runs a batch of in a second."""


@dataclass(frozen=True)
class Sample:
    """A circuit of a model of shape ``config``, and which of :data:`KINDS` it is."""

    config: ViTConfig
    circuit: Circuit
    kind: str

    def __str__(self) -> str:
        c, graph = self.config, self.circuit.graph
        groups = f", {graph.mlp_groups} MLP groups" * (graph.mlp_groups > 1)
        return (f"{c.num_tokens}x{c.embed_dim}, {c.depth} layers of {c.num_heads} heads{groups}: {self.kind}, "
                f"{self.circuit.num_kept / graph.num_edges:.0%} of the {graph.granularity} edges")


def samples(seed: int, config: ViTConfig | None = None) -> Iterator[Sample]:
    """Random circuits without end: of ``config``, or each of another random shape."""
    rng = np.random.default_rng(seed)
    while True:
        yield _circuit(rng, config or _config(rng))


def _config(rng: np.random.Generator) -> ViTConfig:
    while True:
        width, patch = int(rng.choice(WIDTHS)), int(rng.choice(PATCHES))
        config = ViTConfig(img_size=patch * int(rng.choice(SIDES)), patch_size=patch, embed_dim=width,
                           depth=int(rng.choice(DEPTHS)), num_heads=width // int(rng.choice(HEAD_WIDTHS)),
                           num_classes=int(rng.choice(CLASSES)),
                           global_pool="token" if rng.random() < 0.75 else "avg")
        if dense_flops(config) <= LARGEST:
            return config


def _circuit(rng: np.random.Generator, config: ViTConfig) -> Sample:
    """A circuit whose output depends on the image."""
    kind = str(rng.choice(KINDS))
    graph = Graph(config.depth, config.num_heads, str(rng.choice(("head", "head", "qkv", "layer"))),
                  int(rng.choice((1, 1, 4, 8))))
    while True:
        keep = np.ones(graph.num_edges, dtype=bool)
        if kind not in ("full", "cut edges"):
            keep &= _without(rng, graph, lean=kind == "lean")
        if "cut edges" in kind:
            keep &= rng.random(graph.num_edges) >= rng.uniform(0.05, 0.7)
        if (depends_on_input(graph, keep) & reaches_logits(graph, keep))[1:].any():
            return Sample(config, Circuit(graph, keep), kind)


def _without(rng: np.random.Generator, graph: Graph, *, lean: bool) -> np.ndarray:
    """[E] bool: all edges but those out of some senders; of a lean model most MLPs, or their groups, and few heads."""
    share = rng.uniform(0.2, 0.8)
    dead = np.array([rng.random() < ((0.75 if node.kind == "mlp" else 0.12) if lean else share)
                     for node in graph.sender_nodes])
    dead[0] = False
    return np.concatenate([~dead[: reader.fan_in] for reader in graph.reader_nodes])
