"""The searches of the experiments: each from a dense model to a circuit, its ablation beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitsparse import Ablation, Circuit, EdgeScores, Graph, ViT, discover
from vitsparse.compiler.cost import PlanCost
from vitsparse.discovery.nodes import edge_senders, largest_within, of_nodes

from .lab import Lab


@dataclass(frozen=True)
class Task:
    """What a search by latency is given: ``budget`` is a share of the dense model's, ``seed`` that of its draws."""

    lab: Lab
    model: ViT
    graph: Graph
    ablation: Ablation
    cost: PlanCost
    budget: float
    seed: int
    folder: Path

    def images(self) -> list[Any]:
        return self.lab.search_batches(self.lab.size.search.images)

    def within(self, scores: EdgeScores) -> Circuit:
        """The largest circuit by ``scores`` within the budget."""
        return largest_within(scores, self.cost, self.budget * self.cost.dense)


def budgeted(task: Task) -> Circuit:
    return discover.budgeted(task.model, task.images(), graph=task.graph, ablation=task.ablation, budget=task.budget,
                             cost=task.cost, step=task.lab.size.search.step, seed=task.seed,
                             journal=task.folder / "search.safetensors")


def magnitude(task: Task) -> Circuit:
    """Whole heads and MLP groups by the size of their weights: for each, the norm over all that it writes to."""
    edges = discover.magnitude(task.model, graph=task.graph, ablation=task.ablation)
    sizes = np.sqrt(np.bincount(edge_senders(task.graph), np.square(edges.values), len(task.graph.senders)))
    sizes[0] = np.inf
    return task.within(EdgeScores(task.graph, of_nodes(task.graph, sizes), dict(edges.provenance)))


def importance(task: Task) -> Circuit:
    """Whole heads and MLP groups by the KL that each alone costs, per microsecond that it saves."""
    return task.within(discover.node_importance(
        task.model, task.images(), graph=task.graph, ablation=task.ablation, cost=task.cost, metric="kl", exact=True))


BY_LATENCY: dict[str, Callable[[Task], Circuit]] = {
    "budgeted": budgeted, "magnitude": magnitude, "importance": importance}


def within_budget(lab: Lab, model: ViT, method: str, budget: float, folder: Path, seed: int = 0) -> tuple[
        Circuit, Ablation]:
    """The circuit of ``method`` within ``budget`` of the dense latency, under mean ablation."""
    graph = lab.graph(model)
    ablation = lab.mean_ablation(model, graph)
    task = Task(lab, model, graph, ablation, lab.cost(model), budget, seed, folder)
    return written(BY_LATENCY[method](task), ablation, folder)


def by_acdc(lab: Lab, model: ViT, granularity: str, folder: Path) -> tuple[Circuit, Ablation]:
    """ACDC: of operators as the seed had it (zero ablation, KL, tau 5e-2), or of heads (mean ablation)."""
    search, graph = lab.size.search, Graph.of(model, granularity=granularity)
    operators = granularity == "operator"
    ablation = Ablation.zero(model, graph=graph) if operators else lab.mean_ablation(model, graph)
    threshold = search.operator_threshold if operators else search.head_threshold
    circuit = discover.acdc(model, lab.search_batches(search.acdc_images), graph=graph, ablation=ablation,
                            threshold=threshold, metric="kl", journal=folder / "search.jsonl")
    return written(circuit, ablation, folder)


def written(circuit: Circuit, ablation: Ablation, folder: Path) -> tuple[Circuit, Ablation]:
    """Both, and both as files."""
    ablation.save(folder / "ablation.safetensors")
    circuit.save(folder / "circuit.json")
    return circuit, ablation
