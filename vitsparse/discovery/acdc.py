"""ACDC: automatic circuit discovery, edge by edge (Conmy et al., "Towards Automated Circuit Discovery for Mechanistic
Interpretability", 2023, algorithm 1).

    keep = all edges
    for each edge in reverse canonical order:
        cut it for good  iff  metric(keep without it) - metric(keep) < threshold

This takes one metric, hence one forward over all images, per edge. Three things are left out of those forwards. None of
them changes a bit of any metric (activations being finite), so the circuit is that of the plain loop:

- *What the cut does not change.* A sender without a kept path from the reader of the edge gets the same input as
  before, and writes what it wrote: above all everything before the reader.
- *What nobody reads any more.* A sender without a kept path to ``logits`` has weight 0 in every sum that matters, so
  what it writes is not brought up to date.
- *Edges into readers without a kept path to* ``logits``. The difference is exactly 0: decided without a forward.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..circuit import Circuit, Graph
from ..errors import InputError
from ..evaluation.ablation import Ablation, fingerprint
from ..evaluation.evaluate import device_of, eval_mode
from ..model.edgewise import check_fits
from ..model.vit import ViT
from ..version import __version__
from .journal import Decision, Journal
from .objective import Objective


@torch.no_grad()
def acdc(model: ViT, batches: Iterable[tuple[Tensor, Tensor]], *, graph: Graph, ablation: Ablation,  # noqa: PLR0913
         threshold: float, metric: str = "kl", journal: str | os.PathLike | None = None,
         progress: bool = True) -> Circuit:
    """The circuit of the edges whose cut raises ``metric`` by ``threshold`` or more, decided one after another.

    ``batches``: re-iterable of images float [B, C, S, S] and labels int64 [B]; read once and held in memory. ``metric``
    is a mean over all images, in nats and float64: ``"kl"`` (from the dense model) or ``"ce"``. ``journal``: a file of
    decisions; the same search started again with it goes on where it was and finds the identical circuit.
    Raises :class:`InputError` for a graph of another shape, one-shot batches, an unknown metric, labels outside the
    classes, a metric that is not finite for the dense model, or a journal of another search.
    """
    check_fits(model, graph)
    _check_arguments(threshold, metric)
    with eval_mode(model):
        objective = Objective(model, batches, graph, ablation, metric)
        search = {"method": "acdc", "threshold": float(threshold), "metric": metric, "images": objective.num_images,
                  "model": fingerprint(model), "vitsparse": __version__, "torch": str(torch.__version__)}
        state = _State(graph, np.ones(graph.num_edges, dtype=bool), objective.dense, graph.num_edges)
        if journal is None:
            _search(objective, state, threshold, None, progress)
        else:
            identity = {**search, "graph": graph.to_dict(), "ablation": ablation.describe(),
                        "data": objective.digest(), "device": device_of(model).type}
            with Journal(journal, identity, graph.edge_names[::-1]) as log:
                _search(objective, state, threshold, log, progress)
    return Circuit(graph, state.keep, ablation.describe(), {**search, "value": state.value})


@dataclass
class _State:
    """The circuit so far: edges from ``undecided`` on are decided, and ``value`` is its metric."""

    graph: Graph
    keep: np.ndarray
    value: float
    undecided: int

    def apply(self, decision: Decision) -> None:
        self.undecided -= 1
        self.keep[self.undecided] = decision.kept
        if not decision.kept:
            self.value = decision.metric


def _search(objective: Objective, state: _State, threshold: float, log: Journal | None, progress: bool) -> None:
    """Decide every edge that is not decided in the journal; the bar is quiet when the output is no terminal."""
    from tqdm import tqdm

    if log and log.decisions:
        for decision in log.decisions:
            state.apply(decision)
        objective.restart(state.keep)
    total = state.graph.num_edges
    with tqdm(total=total, initial=total - state.undecided, desc="acdc", unit="edge",
              disable=None if progress else True) as bar:
        while state.undecided:
            decision = _decide(objective, state, threshold)
            if log:
                log.record(decision)
            state.apply(decision)
            bar.set_postfix(kept=int(state.keep[state.undecided:].sum()), value=f"{state.value:.3g}", refresh=False)
            bar.update()


def _decide(objective: Objective, state: _State, threshold: float) -> Decision:
    """Try to cut the last undecided edge. A metric that is no finite number speaks for keeping the edge."""
    edge = state.undecided - 1
    without = state.keep.copy()
    without[edge] = False
    matters = objective.matters(without, edge)
    value = objective.cut(without, edge) if matters else state.value
    cut = math.isfinite(value) and value - state.value < threshold
    if matters and not cut:
        objective.undo()
    return Decision(state.graph.edge_names[edge], not cut, value)


def _check_arguments(threshold: float, metric: str) -> None:
    if not math.isfinite(threshold):
        raise InputError("the threshold must be a finite number", where="threshold", found=threshold)
    if metric == "accuracy":
        raise InputError("ACDC cuts what does not raise its metric, and accuracy falls when a model gets worse",
                         where="metric", expected="'kl' or 'ce'", found="'accuracy'")
