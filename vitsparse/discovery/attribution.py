"""What the methods by gradient share: a sum over all images, shared out over ranks, that survives being killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..circuit import GRANULARITIES, EdgeScores, Graph
from ..data.ranks import ranks
from ..errors import InputError
from ..evaluation.ablation import Ablation
from ..evaluation.batches import check_batches, pairs
from ..evaluation.evaluate import check_labels, device_of, eval_mode
from ..evaluation.metrics import Metric
from ..model.edgewise import check_fits
from ..model.vit import ViT
from .gradients import EdgeGradients
from .identity import data_digest, identity
from .state import State

Contribution = Callable[[Tensor, Any], Tensor]
"""From images and labels to the sum over these images of dM/dkeep or what stands for it, float64 [E]."""


@dataclass(frozen=True)
class Attribution:
    """A method by name on a model, its data, and the ``settings`` that it has besides.

    Raises :class:`InputError` for a graph of another shape or an operator graph, batches that are no re-iterable, and
    a metric that has no gradient.
    """

    method: str
    model: ViT
    batches: Iterable[tuple[Tensor, Tensor]]
    graph: Graph
    ablation: Ablation
    metric: Metric
    settings: dict[str, Any]

    def __post_init__(self):
        check_fits(self.model, self.graph)
        check_batches(self.batches)
        if self.graph.granularity not in GRANULARITIES:
            raise InputError(f"{self.method} needs readers of the residual stream, and an operator graph has none",
                             where="graph", expected=f"one of {GRANULARITIES}",
                             found=self.graph, remedy="use acdc or exact with this graph")
        if self.metric.name.split()[0] == "accuracy":
            raise InputError(f"accuracy has no gradient for {self.method}", where="metric",
                             expected="'ce' or 'logit_difference'", found=repr(self.metric.name))

    @torch.no_grad()
    def scores(self, contribution: Contribution, journal: str | os.PathLike | None, progress: bool) -> EdgeScores:
        """Minus the mean over all images of what ``contribution`` gives, with dropout off.

        Each rank takes every ``world``-th batch, and the ranks add up after each round of them, in float64. ``journal``
        keeps the sum so far, so that a search that was killed goes on with the next batch.
        """
        data = "" if journal is None else data_digest(pairs(self.batches, device_of(self.model)), self.ablation)
        search = identity(self.method, self.model, self.graph, self.ablation, self.metric, data=data, **self.settings)
        sums, here = _Sums(self.graph.num_edges, State(journal, search)), ranks()
        here.barrier()  # nobody writes before all have read
        seen = 0
        with eval_mode(self.model), self._bar(sums.batches, progress) as bar:
            for seen, (images, labels) in enumerate(pairs(self.batches, device_of(self.model)), 1):
                if seen <= sums.batches:
                    continue
                if seen % here.world == here.rank:
                    sums.add(self._contribution(contribution, images, labels, f"batch {seen - 1}"), len(images))
                if seen % here.world == 0:
                    sums.close_round(seen)
                bar.update()
        sums.close_round(seen)
        if not sums.images:
            raise InputError("there are no images to score with", where="batches", expected="at least one batch")
        about = {field: value for field, value in search.items() if field not in ("graph", "data", "device")}
        scores = EdgeScores(self.graph, (-sums.total / sums.images).numpy(), {**about, "images": sums.images})
        sums.save()
        return scores

    def _contribution(self, contribution: Contribution, images: Tensor, labels: Any, where: str) -> Tensor:
        if self.metric.needs_labels:
            check_labels(labels, torch.Size((len(images), self.model.num_classes)), where=where)
        return contribution(images, labels)

    def _bar(self, done: int, progress: bool) -> Any:
        from tqdm import tqdm

        count = len(self.batches) if hasattr(self.batches, "__len__") else None
        return tqdm(total=count, initial=done, desc=self.method, unit="batch",
                    disable=None if progress and ranks().is_first else True)


def scores_at_dense(task: Attribution, journal: str | os.PathLike | None, progress: bool, *,
                    relevance: bool = False) -> EdgeScores:
    """Scores by one backward from the dense model, where a metric that is flat there says nothing."""
    if task.metric.flat_at_dense:
        raise InputError("the dense model is the minimum of this metric, so its gradient there is zero and "
                         f"{task.method} would score rounding errors", where="metric", found=repr(task.metric.name),
                         expected="'ce' or 'logit_difference'", remedy="use eap_ig, exact or acdc with it")
    gradients = EdgeGradients(task.model, task.graph, task.ablation, task.metric, relevance=relevance)
    return task.scores(lambda images, labels: gradients(images, labels)[1], journal, progress)


class _Sums:
    """The sum [E] over the images of the first ``batches`` batches, the same on every rank; ``state`` keeps it."""

    def __init__(self, num_edges: int, state: State):
        self._state, self.batches = state, 0
        self._sums = torch.zeros(num_edges + 1, dtype=torch.float64)  # the last one counts the images
        if state.arrays is not None:
            self.batches = int(state.arrays["batches"][0])
            self._sums = torch.from_numpy(state.arrays["sums"].copy())
        self._share = torch.zeros_like(self._sums)

    @property
    def total(self) -> Tensor:
        return self._sums[:-1]

    @property
    def images(self) -> int:
        return int(self._sums[-1])

    def add(self, contribution: Tensor, images: int) -> None:
        """This rank's batch of the round."""
        self._share[:-1], self._share[-1] = contribution, images

    def close_round(self, batches: int) -> None:
        """All ranks add up: the sum is that of the first ``batches`` batches."""
        self._sums, self.batches = self._sums + ranks().sum(self._share), batches
        self._share = torch.zeros_like(self._sums)
        if self._state.due:
            self.save()

    def save(self) -> None:
        if ranks().is_first:
            self._state.save({"sums": self._sums.numpy(), "batches": np.array([self.batches])})
