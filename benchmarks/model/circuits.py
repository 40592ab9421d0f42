"""The circuits whose latency is measured. Latency does not depend on the weights, so random ones will do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vitsparse.circuit import Circuit, Graph, Sender

FOUND = Path(__file__).parent.parent / "circuits" / "found.json"
"""The circuit of ``budgeted`` at half the latency of a model of 12 layers and 8 heads, trained on 20 classes of Tiny
ImageNet; its mean ablation lies beside it."""


def kill_nodes(graph: Graph, dead: Callable[[Sender], bool]) -> np.ndarray:
    """[E] bool: all edges but those out of dead senders."""
    lost = np.array([dead(sender) for sender in graph.sender_nodes])
    return np.concatenate([~lost[: reader.fan_in] for reader in graph.reader_nodes])


def named_circuits(depth: int, heads: int, seed: int = 0) -> dict[str, Circuit]:
    """The circuits by name, for a ViT of ``depth`` layers and ``heads`` heads:

    ``full``; ``half``: half of the heads, every second MLP; ``third``: a quarter of the heads, a third of the MLPs;
    ``lean``: all heads of a layer but one, 2 of 8 MLP groups; ``mixed``: half, then 30 % of the edges between its live
    nodes cut; ``edges50``: every node alive, half of the edges cut; ``found``: :data:`FOUND`, for its shape.
    """
    graph, groups = Graph(depth, heads), Graph(depth, heads, mlp_groups=8)
    rng = np.random.default_rng(seed)
    kept_heads = {"half": heads // 2, "third": max(1, heads // 4), "lean": heads - 1}

    def dead(name: str, mlp_dies: Callable[[Sender], bool]) -> Callable[[Sender], bool]:
        return lambda s: s.index >= kept_heads[name] if s.kind == "head" else s.kind == "mlp" and mlp_dies(s)

    half = kill_nodes(graph, dead("half", lambda s: s.layer % 2 == 1))
    third = kill_nodes(graph, dead("third", lambda s: s.layer % 3 > 0))
    lean = kill_nodes(groups, dead("lean", lambda s: s.index >= 2))
    circuits = {
        "full": Circuit.full(graph), "half": Circuit(graph, half), "third": Circuit(graph, third),
        "lean": Circuit(groups, lean), "mixed": Circuit(graph, half & (rng.random(graph.num_edges) > 0.3)),
        "edges50": Circuit(graph, rng.random(graph.num_edges) < 0.5),
    }
    found = Circuit.load(FOUND)
    if (found.graph.depth, found.graph.heads) == (depth, heads):
        circuits["found"] = Circuit(found.graph, found.keep)  # whatever stands in for its cut edges
    return circuits
