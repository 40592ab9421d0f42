"""The circuits whose latency is measured. Latency does not depend on the weights, so random ones will do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vitsparse.circuit import Circuit, Graph, Sender
from vitsparse.circuit.liveness import depends_on_input, reaches_logits

FOUND = Path(__file__).parent.parent / "circuits" / "found.json"
"""The circuit of ``budgeted`` at half the latency of a model of 12 layers and 8 heads, trained on 20 classes of Tiny
ImageNet; its mean ablation lies beside it."""


def kill_nodes(graph: Graph, dead: Callable[[Sender], bool]) -> np.ndarray:
    """[E] bool: all edges but those out of dead senders."""
    lost = np.array([dead(sender) for sender in graph.sender_nodes])
    return np.concatenate([~lost[: reader.fan_in] for reader in graph.reader_nodes])


def live_nodes(circuit: Circuit) -> np.ndarray:
    """[S] bool: senders that vary with the image and reach the logits."""
    return reaches_logits(circuit.graph, circuit.keep) & depends_on_input(circuit.graph, circuit.keep)


def with_all_edges(circuit: Circuit) -> Circuit:
    """The live nodes of ``circuit`` with every edge between them."""
    live = dict(zip(circuit.graph.sender_nodes, live_nodes(circuit), strict=True))
    return Circuit(circuit.graph, kill_nodes(circuit.graph, lambda sender: not live[sender]))


def revive(graph: Graph, keep: np.ndarray, among: np.ndarray) -> Circuit:
    """``keep`` [E] and what its senders need to live as they do in ``among``: an edge from input, one to the logits."""
    keep, wanted = keep.copy(), live_nodes(Circuit(graph, among))
    blind = wanted & ~depends_on_input(graph, keep)
    for reader in graph.reader_nodes:
        keep[reader.first_edge] |= blind[list(reader.drives)].any()
    keep[graph.reader_nodes[-1].edges] |= wanted & ~reaches_logits(graph, keep)
    return Circuit(graph, keep)


def named_circuits(depth: int, heads: int, seed: int = 0) -> dict[str, Circuit]:
    """The circuits by name, for a ViT of ``depth`` layers and ``heads`` heads:

    ``full``; ``half``: half of the heads, every second MLP; ``third``: a quarter of the heads, a third of the MLPs;
    ``lean``: all heads of a layer but one, 2 of 8 MLP groups; ``mixed``: half, then 30 % of the edges between its live
    nodes cut; ``edges50``: every node alive, half of the edges cut; ``found``: :data:`FOUND`, for its shape;
    ``found_nodes``: its live nodes, with all edges between them.

    What loses its only way in or out in ``mixed`` or ``edges50`` gets one back (some 10 edges), so that these have the
    nodes of ``half`` and ``full``, and what they cost beside them is what edges cost.
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
        "lean": Circuit(groups, lean), "mixed": revive(graph, half & (rng.random(graph.num_edges) > 0.3), half),
        "edges50": revive(graph, rng.random(graph.num_edges) < 0.5, np.ones(graph.num_edges, dtype=bool)),
    }
    found = Circuit.load(FOUND)
    if (found.graph.depth, found.graph.heads) == (depth, heads):
        circuits["found"] = Circuit(found.graph, found.keep)  # whatever stands in for its cut edges
        circuits["found_nodes"] = with_all_edges(circuits["found"])
    return circuits
