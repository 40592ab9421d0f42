"""Node importance per microsecond: structured pruning's criterion with measured time in place of parameter counts.

    score(node) = | sum of the scores of its outgoing edges |  /  microseconds that its removal saves

The sum over a node's edges is the first-order estimate of cutting them all (Michel et al., "Are Sixteen Heads Really
Better than One?", 2019, arXiv:1905.10650; Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019,
arXiv:1906.10771). With ``exact`` it is the change of the metric that is measured when they are. Each node is judged
alone, in the dense model: nothing is scored again once others are gone, and edges between live nodes are never cut.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ..circuit import EdgeScores, Graph
from ..errors import InputError
from ..evaluation.ablation import Ablation
from ..evaluation.evaluate import eval_mode
from ..evaluation.metrics import Metric, metric_named
from ..model.edgewise import check_fits
from ..model.vit import ViT
from .eap import eap
from .identity import identity
from .nodes import Cost, check_cost, edge_senders, of_nodes, savings, without
from .objective import Objective


def node_importance(model: ViT, batches: Iterable[tuple[Tensor, Tensor]], *, graph: Graph,  # noqa: PLR0913
                    ablation: Ablation, cost: Cost, metric: str | Metric = "ce", exact: bool = False,
                    journal: str | os.PathLike | None = None, progress: bool = True) -> EdgeScores:
    """Scores >= 0 [E], change of the metric per microsecond, such that whole nodes die together under ``top_k``.

    An edge has the score of the less important of the two nodes that it connects; an MLP reads for the most important
    of its groups, and ``input`` and ``logits`` are never the less important one. ``cost`` predicts latencies
    (``PlanCost`` of the compiler). ``metric`` is one that :func:`eap` takes, or any with ``exact``, which runs one
    forward for each node in place of ``eap`` (its ``journal`` is not read then). Raises :class:`InputError` where
    ``eap`` does.
    """
    check_fits(model, graph)
    if graph.granularity == "operator":
        raise InputError("an operator graph has no heads and MLPs to judge", where="graph", found=graph,
                         expected="a graph of heads and MLPs")
    check_cost(cost)
    nodes, everything = range(1, len(graph.senders)), np.ones(graph.num_edges, dtype=bool)
    circuits = [without(graph, everything, [node]) for node in nodes]
    if exact:
        harm, about = _measured(model, batches, graph, ablation, metric_named(metric), circuits)
    else:
        scores = eap(model, batches, graph=graph, ablation=ablation, metric=metric, journal=journal, progress=progress)
        harm, about = np.bincount(edge_senders(graph), scores.values)[1:], dict(scores.provenance)
    saved = savings(cost, graph, everything, [((node,), keep) for node, keep in zip(nodes, circuits, strict=True)])
    importance = np.concatenate([[np.inf], np.abs(harm) / np.maximum(saved, 1e-3)])
    about |= {"method": "node_importance", "exact": exact, "cost": dict(cost.describe())}
    return EdgeScores(graph, of_nodes(graph, importance), about)


@torch.no_grad()
def _measured(model: ViT, batches: Iterable[tuple[Tensor, Tensor]], graph: Graph, ablation: Ablation,
              metric: Metric, circuits: list[np.ndarray]) -> tuple[np.ndarray, dict]:
    """By how much each circuit raises the metric, and the provenance."""
    with eval_mode(model):
        objective = Objective(model, batches, graph, ablation, metric)
        harm = np.array(objective.values(circuits)) - objective.dense
        search = identity("node_importance", model, graph, ablation, metric, data=objective.digest(),
                          images=objective.num_images)
    return harm, {field: value for field, value in search.items() if field not in ("graph", "data", "device")}
