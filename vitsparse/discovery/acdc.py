"""ACDC: automatic circuit discovery, edge by edge (Conmy et al., "Towards Automated Circuit Discovery for Mechanistic
Interpretability", 2023, algorithm 1).

    keep = all edges
    for each edge in reverse canonical order:
        cut it for good  iff  metric(keep without it) - metric(keep) < threshold

This takes one metric, hence one forward over all images, per edge. :class:`~vitsparse.discovery.objective.Objective`
runs only the part of it that a cut changes, so the circuit is that of the plain loop (metrics are equal but for the
rounding of sums added up in another order). Edges into readers without a kept path to ``logits`` need no forward: the
difference is exactly 0.
"""

from __future__ import annotations

import collections
import itertools
import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..circuit import Circuit, Graph
from ..errors import InputError
from ..evaluation.ablation import Ablation
from ..evaluation.evaluate import eval_mode
from ..evaluation.metrics import Metric, metric_named
from ..model.edgewise import check_fits
from ..model.vit import ViT
from .identity import identity
from .journal import Decision, Journal
from .objective import WholeObjective, objective_of

RECENT = 16
"""How many decisions the guess about the next ones looks back on."""


@torch.no_grad()
def acdc(model: ViT, batches: Iterable[tuple[Tensor, Any]], *, graph: Graph, ablation: Ablation,  # noqa: PLR0913
         threshold: float, metric: str | Metric = "kl", lookahead: int | None = None,
         journal: str | os.PathLike | None = None, progress: bool = True) -> Circuit:
    """The circuit of the edges whose cut raises ``metric`` by ``threshold`` or more, decided one after another.

    ``batches``: re-iterable of images float [B, C, S, S] and labels int64 [B] (None will do where the metric does not
    read them); read once and held in memory. ``metric``: any but ``"accuracy"``, a mean over all images. ``lookahead``:
    how many edges are tried in one forward, on the guess that they will all be cut or all be kept; what follows a
    wrong guess is thrown away. None chooses by the device and the number of images. ``journal``: a file of decisions;
    the same search started again with it goes on where it was and finds the identical circuit.
    Under torchrun the ranks try different edges, on the same guess; all return the circuit, the first one writes.
    Raises :class:`InputError` for a graph of another shape, batches that are one-shot or empty, an unknown metric,
    labels that it needs and that do not fit, a metric that is not finite for the dense model, a threshold that is
    negative or not finite, or a journal of another search.
    """
    check_fits(model, graph)
    metric = _check_arguments(threshold, metric)
    with eval_mode(model):
        objective = objective_of(model, batches, graph, ablation, metric, lookahead=lookahead)
        search = identity("acdc", model, graph, ablation, metric, data=objective.digest(), threshold=float(threshold),
                          images=objective.num_images)
        with Journal(journal, search, graph.edge_names[::-1]) as log:
            found = _Search(objective, threshold, log)
            found.run(progress)
    about = {name: value for name, value in search.items() if name != "graph"}
    return Circuit(graph, found.keep, ablation.describe(), {**about, "value": found.value})


class _Search:
    """The circuit so far: edges from ``undecided`` on are decided, and ``value`` is the metric after the last cut."""

    def __init__(self, objective: WholeObjective, threshold: float, journal: Journal):
        self.objective, self.threshold, self.journal = objective, threshold, journal
        self.graph, self.undecided = objective.graph, objective.graph.num_edges
        self.keep, self.value = objective.keep.copy(), objective.dense
        self.recent: collections.deque[bool] = collections.deque(maxlen=RECENT)

    def run(self, progress: bool) -> None:
        """Decide every edge that is not decided in the journal; the bar is quiet when the output is no terminal."""
        from tqdm import tqdm

        decided = iter(self.journal.lines)
        with tqdm(total=self.undecided, desc="acdc", unit="edge", disable=None if progress else True) as self.bar:
            for block in reversed(self.objective.blocks):
                for decision in itertools.islice(decided, len(block)):
                    self._apply(decision)
                if self.undecided > block.start:
                    decide = self._decide if self.objective.matters(block.start) else self._decide_without_forward
                    decide(block.start)

    def _decide(self, first: int) -> None:
        """Decide the edges from ``first`` on, all into one reader.

        The circuit as it is is measured like the others, so that a cut without effect makes a difference of exactly 0.
        """
        self.objective.turn_to(first)
        reference, = self.objective.values([self.keep])
        while self.undecided > first:
            guess = 2 * sum(self.recent) <= len(self.recent)
            values = self.objective.values(self._candidates(first, cut=guess))
            for value in values:
                cut = math.isfinite(value) and value - reference < self.threshold
                reference = value if cut else reference
                self._record(not cut, value)
                if cut != guess:
                    break

    def _candidates(self, first: int, *, cut: bool) -> list[np.ndarray]:
        """The next circuits to try: each without one more edge, given that all before it are cut, or that none is."""
        circuits, before = [], self.keep
        for edge in range(self.undecided - 1, first - 1, -1)[: self.objective.at_once]:
            circuits.append(before.copy())
            circuits[-1][edge] = False
            before = circuits[-1] if cut else self.keep
        return circuits

    def _decide_without_forward(self, first: int) -> None:
        """Cutting these edges makes a difference of exactly 0; those that carry only shapes cannot be cut."""
        while self.undecided > first:
            kept = bool(self.graph.shape_only[self.undecided - 1]) or self.threshold == 0
            self._record(kept, self.value)

    def _record(self, kept: bool, value: float) -> None:
        decision = Decision(self.graph.edge_names[self.undecided - 1], kept, value)
        self.journal.record(decision)
        self._apply(decision)

    def _apply(self, decision: Decision) -> None:
        self.undecided -= 1
        self.recent.append(decision.kept)
        if not decision.kept:
            self.keep[self.undecided], self.value = False, decision.metric
            self.objective.adopt(self.keep)
        self.bar.set_postfix(kept=int(self.keep[self.undecided:].sum()), value=f"{self.value:.3g}", refresh=False)
        self.bar.update()


def _check_arguments(threshold: float, metric: str | Metric) -> Metric:
    if not isinstance(threshold, int | float) or not 0 <= threshold < math.inf:
        raise InputError("the threshold must be a finite number and not negative", where="threshold", found=threshold)
    metric = metric_named(metric)
    if metric.name.startswith("accuracy"):
        raise InputError("ACDC cuts what does not raise its metric, and accuracy falls when a model gets worse",
                         where="metric", expected="one that grows: 'kl', 'ce' or a logit difference", found=metric.name)
    return metric
