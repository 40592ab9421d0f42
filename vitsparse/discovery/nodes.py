"""Circuits by their nodes: what dies with a sender, and how much time that saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

import numpy as np

from ..circuit import Circuit, EdgeScores, Graph
from ..circuit.graph import Reader
from ..circuit.liveness import reaches_logits
from ..errors import InputError


class Cost(Protocol):
    """Predicted latency on some device, in microseconds: a ``PlanCost`` of the compiler, or anything like it."""

    @property
    def dense(self) -> float:
        """That of the dense model."""
        ...

    def latency(self, circuit: Circuit) -> float:
        """That of a circuit; weights and ablation values play no part."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Plain JSON values that tell one cost from another."""
        ...


def check_cost(cost: Any) -> None:
    """Refuse what predicts no latency."""
    if not (hasattr(cost, "latency") and hasattr(cost, "dense")):
        raise InputError("a latency has to be predicted", where="cost", found=type(cost).__name__,
                         expected="a cost with .dense and .latency(circuit)",
                         remedy="PlanCost(CostModel.load(FILE), model.config) of vitsparse.compiler.cost; "
                                "vitsparse bench --calibrate --cost FILE measures this device")


def stage_of(reader: Reader) -> int:
    """Readers of one stage read together: the attention of a layer (even), its MLP (odd), the logits (last)."""
    return 2 * reader.layer + (reader.kind == "mlp")


def edge_senders(graph: Graph) -> np.ndarray:
    """[E]: the sender of each edge, by position."""
    return np.concatenate([np.arange(reader.fan_in) for reader in graph.reader_nodes])


def edge_stages(graph: Graph) -> np.ndarray:
    """[E]: the stage of each edge's reader."""
    return np.concatenate([np.full(reader.fan_in, stage_of(reader)) for reader in graph.reader_nodes])


def without(graph: Graph, keep: np.ndarray, senders: Sequence[int]) -> np.ndarray:
    """``keep`` with every edge out of ``senders`` cut."""
    return keep & ~np.isin(edge_senders(graph), senders)


def live_kills(graph: Graph, keep: np.ndarray) -> list[tuple[int, ...]]:
    """What can be killed: each sender with a kept edge besides ``input``, and the groups of an MLP together."""
    live = [sender for sender in np.unique(edge_senders(graph)[keep]).tolist() if sender]
    mlps = groupby((s for s in live if graph.sender_nodes[s].kind == "mlp"), lambda s: graph.sender_nodes[s].layer)
    together = [tuple(groups) for _, groups in mlps]
    return [(sender,) for sender in live] + [groups for groups in together if len(groups) > 1]


def of_nodes(graph: Graph, importance: np.ndarray) -> np.ndarray:
    """[E]: scores of edges from those of senders [S], such that whole nodes die together under ``top_k``.

    An edge has the score of the less important of the two nodes that it connects; an MLP reads for the most important
    of its groups. A node of importance inf never is the less important one: edges that connect only such nodes, and
    those to ``logits``, come out on top.
    """
    values = np.concatenate([
        np.minimum(importance[: reader.fan_in], importance[list(reader.drives)].max(initial=-np.inf)
                   if reader.drives else np.inf) for reader in graph.reader_nodes])
    return np.where(np.isinf(values), 1.0 + values[np.isfinite(values)].max(initial=0.0), values)


def largest_within(scores: EdgeScores, cost: Cost, limit: float) -> Circuit:
    """A ``top_k`` within ``limit`` microseconds, by bisection: about the largest, as latency mostly grows with k.

    Raises :class:`InputError` where even the empty circuit takes longer.
    """
    if (least := cost.latency(scores.top_k(0))) > limit:
        raise InputError("no circuit is that fast", where="largest_within: limit", found=f"{limit:.4g} microseconds",
                         expected=f"at least {least:.4g}")
    fits, too_slow = 0, scores.graph.num_edges + 1
    while too_slow - fits > 1:
        middle = (fits + too_slow) // 2
        fits, too_slow = (middle, too_slow) if cost.latency(scores.top_k(middle)) <= limit else (fits, middle)
    return scores.top_k(fits)


def between_live_nodes(graph: Graph, keep: np.ndarray) -> np.ndarray:
    """[E] bool: the edges, kept or cut, whose sender and whose reader both have a kept path to ``logits``."""
    alive = reaches_logits(graph, keep)
    return np.concatenate([alive[: reader.fan_in] & (reader.kind == "logits" or alive[list(reader.drives)].any())
                           for reader in graph.reader_nodes])


def cut_share(graph: Graph, keep: np.ndarray) -> float:
    """Which share of the edges between live nodes is cut; 1 where no node lives."""
    between = between_live_nodes(graph, keep)
    return float((between & ~keep).sum() / between.sum()) if between.any() else 1.0


def savings(cost: Cost, graph: Graph, keep: np.ndarray,
            changes: Sequence[tuple[Sequence[int], np.ndarray]]) -> np.ndarray:
    """Microseconds saved by going from the circuit ``keep`` to that of each of ``changes``: the senders concerned, and
    the circuit.

    One of the nodes of a layer that read the same is compiled for all of them. They are alike but for who reads them,
    which decides how sums are shared: compiling each would be exact, and take many times as long.
    """
    now, known, saved = cost.latency(Circuit(graph, keep)), {}, []
    for nodes, changed in changes:
        signature = tuple(sorted(_signature(graph, keep, node) for node in nodes))
        if signature not in known:
            known[signature] = now - cost.latency(Circuit(graph, changed))
        saved.append(known[signature])
    return np.array(saved)


def _signature(graph: Graph, keep: np.ndarray, sender: int) -> tuple:
    """Layer, kind, and what is read."""
    node = graph.sender_nodes[sender]
    return node.layer, node.kind, tuple(keep[reader.edges].tobytes() for reader in graph.reader_nodes
                                        if sender in reader.drives)
