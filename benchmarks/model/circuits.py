"""The circuits whose latency is measured. Latency does not depend on the weights, so random ones will do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vitsparse.circuit import Circuit, Graph, Sender


def kill_nodes(graph: Graph, dead: Callable[[Sender], bool]) -> np.ndarray:
    """[E] bool: all edges but those out of dead senders."""
    lost = np.array([dead(sender) for sender in graph.sender_nodes])
    return np.concatenate([~lost[: reader.fan_in] for reader in graph.reader_nodes])


def named_circuits(depth: int, heads: int, seed: int = 0) -> dict[str, Circuit]:
    """``full``; ``half`` (half of the heads, every second MLP); ``third`` (a quarter of the heads, a third of the MLPs);
    ``lean`` (all heads but one, 2 of 8 MLP groups); ``mixed`` (half, and 30 % of what is left of the edges cut);
    ``edges50`` (every node alive, half of the edges cut)."""
    graph, groups = Graph(depth, heads), Graph(depth, heads, mlp_groups=8)
    rng = np.random.default_rng(seed)
    half = kill_nodes(graph, lambda s: s.index >= heads // 2 if s.kind == "head" else s.kind == "mlp" and s.layer % 2 == 1)
    third = kill_nodes(graph, lambda s: s.index >= max(1, heads // 4) if s.kind == "head" else s.kind == "mlp" and s.layer % 3 > 0)
    lean = kill_nodes(groups, lambda s: s.index >= (heads - 1 if s.kind == "head" else 2) and s.kind != "input")
    return {
        "full": Circuit.full(graph), "half": Circuit(graph, half), "third": Circuit(graph, third),
        "lean": Circuit(groups, lean), "mixed": Circuit(graph, half & (rng.random(graph.num_edges) > 0.3)),
        "edges50": Circuit(graph, rng.random(graph.num_edges) < 0.5),
    }
