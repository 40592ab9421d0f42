"""Which nodes of a circuit matter: reachability over the kept edges, from integers and booleans alone.

Two different questions, often confused (the compiler needs both):

- a sender is *dead* when no path of kept edges leads from it to ``logits``: nothing it computes is seen;
- a sender is *constant* when no path of kept edges leads from ``input`` to it: it computes the same for every image.

In an operator graph the senders are sub-blocks, and the kept edges those of the graph of blocks that it maps onto.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import operator
from .graph import Graph
from .operator import OPERATOR


def reaches_logits(graph: Graph, keep: np.ndarray) -> np.ndarray:
    """[S] bool: senders with a path of kept edges to ``logits``. ``keep`` is [E] bool."""
    graph, keep = of_stream(graph, keep)
    alive = np.zeros(len(graph.sender_nodes), dtype=bool)
    for reader in reversed(graph.reader_nodes):
        if reader.kind == "logits" or alive[list(reader.drives)].any():
            alive[: reader.fan_in] |= keep[reader.edges]
    return alive


def depends_on_input(graph: Graph, keep: np.ndarray) -> np.ndarray:
    """[S] bool: senders with a path of kept edges from ``input``. ``keep`` is [E] bool."""
    blind = graph.granularity == OPERATOR and not operator.Cuts(graph.depth, keep).reads_images
    return depends_on(graph, keep, [] if blind else [0])


def depends_on(graph: Graph, keep: np.ndarray, sources: Sequence[int]) -> np.ndarray:
    """[S] bool: the senders at positions ``sources``, and those with a path of kept edges from one of them."""
    graph, keep = of_stream(graph, keep)
    varies = np.zeros(len(graph.sender_nodes), dtype=bool)
    varies[list(sources)] = True
    for reader in graph.reader_nodes:
        if (keep[reader.edges] & varies[: reader.fan_in]).any():
            varies[list(reader.drives)] = True
    return varies


def weighs_alike(graph: Graph, keep: np.ndarray) -> np.ndarray:
    """[S] bool: attentions, neither dead nor constant, whose pattern is 1 / T; only an operator graph can say so."""
    even = np.zeros(len(graph.sender_nodes), dtype=bool)
    if graph.granularity == OPERATOR:
        cuts = operator.Cuts(graph.depth, keep)
        even[1::2] = [not cuts.intact("scores", layer=layer) for layer in range(graph.depth)]
    return even & reaches_logits(graph, keep) & depends_on_input(graph, keep)


def prune(graph: Graph, keep: np.ndarray) -> np.ndarray:
    """[E] bool: the fixpoint prune. A node lives iff it has a live edge in and a live edge out; edges of dead nodes go.

    ``input`` needs no way in, ``logits`` no way out (the rule of the EAP-IG tool's ``Graph.prune``).
    """
    if graph.granularity == OPERATOR:
        return operator.prune(graph.depth, keep)
    live = reaches_logits(graph, keep) & depends_on_input(graph, keep)
    result = np.zeros_like(keep)
    for reader in graph.reader_nodes:
        if reader.kind == "logits" or live[list(reader.drives)].any():
            result[reader.edges] = keep[reader.edges] & live[: reader.fan_in]
    return result


def of_stream(graph: Graph, keep: np.ndarray) -> tuple[Graph, np.ndarray]:
    """A graph whose nodes read sums of the residual stream, and its kept edges: for operators, the graph of blocks."""
    if graph.granularity != OPERATOR:
        return graph, keep
    return Graph(graph.depth, graph.heads, "block"), operator.block_edges(graph.depth, keep)
