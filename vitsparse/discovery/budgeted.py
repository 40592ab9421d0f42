"""Of all circuits that run within a time on a device, the one that changes the model least.

    minimise  KL(p_dense || p_circuit)   subject to   cost.latency(circuit) <= budget * cost.dense

A matrix product gets smaller when a head, an MLP or a group of its hidden units dies; an edge that is cut between nodes
that live saves nothing, and costs time where readers no longer share a sum. So the search goes down in rounds:

- around the circuit so far, the second-order model of the metric (:mod:`.quadratic`) says what any set of cuts does;
- *edges*: senders are cut off whole stages (all heads of a layer, an MLP, the logits), whose readers can go on sharing
  their sum, as long as that lowers  metric + price * latency;
- *nodes*: heads, MLP groups and whole MLPs are killed, the cheapest per microsecond first and each with the others'
  deaths counted in, until the round has saved its share. ``price`` is what the last round paid for a microsecond.

Both are checked by measuring the metric, and taken back in half where the model was too hopeful. Within the budget,
dead nodes are exchanged for live ones as long as that helps. Every round is a point of an accuracy-latency curve, which
the circuit's provenance keeps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..circuit import GRANULARITIES, Circuit, Graph
from ..data.ranks import ranks
from ..errors import InputError
from ..evaluation.ablation import Ablation
from ..evaluation.batches import pairs
from ..evaluation.evaluate import device_of, eval_mode
from ..evaluation.metrics import Metric, metric_named
from ..model.edgewise import check_fits
from ..model.vit import ViT
from .descent import Descent, Limits
from .identity import identity
from .nodes import Cost, between_live_nodes, check_cost, without
from .objective import Objective
from .quadratic import Quadratics
from .state import State


@torch.no_grad()
def budgeted(model: ViT, batches: Iterable[tuple[Tensor, Tensor]], *, graph: Graph, ablation: Ablation,  # noqa: PLR0913
             budget: float, cost: Cost, metric: str | Metric = "kl", cut_edges: float = 0.0, step: float = 0.02,
             seed: int = 0, journal: str | os.PathLike | None = None, progress: bool = True) -> Circuit:
    """The circuit with the least ``metric`` found among those within ``budget``, a share of ``cost.dense`` in (0, 1].

    ``cost`` predicts the latency of circuits of this model (``PlanCost`` of the compiler). ``metric`` is "kl" or "ce",
    also among some classes. ``cut_edges`` is the least share of the edges between live nodes that must be cut, whether
    that helps or not. A round saves about ``step`` of the dense latency. ``seed`` fixes the draws of the second-order
    model. ``journal``: a file of the search so far; the same search started again with it finds the identical circuit.

    ``provenance["curve"]`` lists the rounds: ``latency_us``, its ``share`` of dense, the metric's ``value``,
    ``edges`` kept and ``nodes_dead``. Raises :class:`InputError` for a budget below what is reachable (it says the
    least reachable share), settings out of range, a metric without probabilities, a counterfactual ablation or an
    operator graph, batches that are one-shot or empty, and a journal of another search.
    """
    check_fits(model, graph)
    metric = metric_named(metric)
    _check_arguments(graph, ablation, cost, {"budget": budget, "cut_edges": cut_edges, "step": step})
    batches = list(pairs(batches, device_of(model)))
    with eval_mode(model):
        objective = Objective(model, batches, graph, ablation, metric)
        quadratics = Quadratics(model, batches, graph, ablation, metric)
        settings = {"budget": float(budget), "cut_edges": float(cut_edges), "step": float(step), "seed": int(seed),
                    "cost": dict(cost.describe()), "images": objective.num_images}
        search = identity("budgeted", model, graph, ablation, metric, data=objective.digest(), **settings)
        state = State(journal, search)
        ranks().barrier()  # nobody writes before all have read
        limits = Limits(budget * cost.dense, step * cost.dense, cut_edges)
        descent = Descent(objective, quadratics, cost, limits, seed)
        if state.arrays is not None:
            descent.restore(state.arrays)
        _run(descent, state, progress)
    about = {field: value for field, value in search.items() if field not in ("graph", "data", "device")}
    keep = descent.keep & between_live_nodes(graph, descent.keep)
    return Circuit(graph, keep, ablation.describe(), {**about, "value": descent.value, "curve": descent.curve()})


def _run(descent: Descent, state: State, progress: bool) -> None:
    """Round by round, saved after each; the bar counts the share of the dense latency that is gone."""
    from tqdm import tqdm

    goal = round(100 * (1 - descent.limits.latency / descent.cost.dense))
    with tqdm(total=goal, desc="budgeted", unit="%", disable=None if progress and ranks().is_first else True) as bar:
        while not descent.done:
            descent.advance()
            if ranks().is_first:
                state.save(descent.arrays())
            bar.n = min(goal, round(100 * (1 - descent.latency / descent.cost.dense)))
            bar.set_postfix(round=descent.rounds, value=f"{descent.value:.3g}")


def _check_arguments(graph: Graph, ablation: Ablation, cost: Cost, shares: dict[str, Any]) -> None:
    if graph.granularity not in GRANULARITIES:
        raise InputError("an operator graph has no nodes that die one by one", where="graph", found=graph,
                         expected=f"one of {GRANULARITIES}")
    if ablation.corrupt is not None:
        raise InputError("a counterfactual ablation cannot be compiled, so its circuits have no latency",
                         where="ablation", expected="zero, mean or optimal", found=ablation.kind)
    check_cost(cost)
    for name, share in shares.items():
        valid = isinstance(share, float | int) and not isinstance(share, bool) and math.isfinite(share)
        if not valid or not 0 <= share <= 1 or (share == 0 and name != "cut_edges"):
            raise InputError(f"{name} is a share", where=name, expected="a number above 0, at most 1", found=share)
    senders = range(1, len(graph.senders))
    alone = without(graph, np.ones(graph.num_edges, dtype=bool), senders)
    least = cost.latency(Circuit(graph, alone)) / cost.dense
    if shares["budget"] < least:
        raise InputError("no circuit is that fast: with every head and MLP dead the embedding and the classifier are "
                         "left", where="budget", found=shares["budget"], expected=f"at least {least:.4f}")
