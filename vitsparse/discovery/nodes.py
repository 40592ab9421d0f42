"""Circuits by their nodes: what dies with a sender, and how much time that saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..circuit import Circuit, Graph
from ..circuit.graph import Reader
from ..circuit.liveness import reaches_logits


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


def between_live_nodes(graph: Graph, keep: np.ndarray) -> np.ndarray:
    """[E] bool: the edges, kept or cut, whose sender and whose reader both have a kept path to ``logits``."""
    alive = reaches_logits(graph, keep)
    return np.concatenate([alive[: reader.fan_in] & (reader.kind == "logits" or alive[list(reader.drives)].any())
                           for reader in graph.reader_nodes])


def cut_share(graph: Graph, keep: np.ndarray) -> float:
    """Which share of the edges between live nodes is cut."""
    between = between_live_nodes(graph, keep)
    return float((between & ~keep).sum() / max(1, between.sum()))


def savings(cost: Cost, graph: Graph, keep: np.ndarray, kills: Sequence[Sequence[int]]) -> np.ndarray:
    """Microseconds saved by each of ``kills`` (senders that die together) in the circuit ``keep``.

    Nodes of a layer that read the same and are read by the same are each other's mirror image, so one of them is
    compiled for all.
    """
    now, known, saved = cost.latency(Circuit(graph, keep)), {}, []
    senders = edge_senders(graph)
    for kill in kills:
        signature = tuple(sorted(_signature(graph, keep, senders, sender) for sender in kill))
        if signature not in known:
            known[signature] = now - cost.latency(Circuit(graph, without(graph, keep, kill)))
        saved.append(known[signature])
    return np.array(saved)


def _signature(graph: Graph, keep: np.ndarray, senders: np.ndarray, sender: int) -> tuple:
    """Equal for senders that are each other's mirror image: layer, kind, what they read, who reads them."""
    node = graph.sender_nodes[sender]
    stages = edge_stages(graph)
    reads = tuple(keep[reader.edges].tobytes() for reader in graph.reader_nodes if sender in reader.drives)
    readers = np.bincount(stages[(senders == sender) & keep], minlength=1).tobytes()
    return node.layer, node.kind, reads, readers
