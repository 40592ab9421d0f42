"""Exact scores: one intervention per edge. This is the truth that the gradient methods estimate.

    score(edge) = metric(all edges but this one) - metric(all edges)

Slow next to them, but :class:`~vitsparse.discovery.objective.Objective` runs only what a cut changes: with every edge
kept, all readers of a stage read the same sum, so a run is a dense one from the reader's stage on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

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
from .identity import identity
from .journal import Journal, Score
from .objective import WholeObjective, objective_of


@torch.no_grad()
def exact(model: ViT, batches: Iterable[tuple[Tensor, Any]], *, graph: Graph, ablation: Ablation,
          metric: str | Metric = "kl", journal: str | os.PathLike | None = None, progress: bool = True) -> EdgeScores:
    """How much ``metric`` rises when one edge is cut, for every edge; a cut without effect scores exactly 0.

    ``batches``: re-iterable of images float [B, C, S, S] and labels int64 [B] (None will do where the metric does not
    read them); read once and held in memory. ``metric``: any, a mean over all images; the score of ``"accuracy"`` is
    the drop, so that a positive score means for every metric that cutting hurts. ``journal``: a file of scores; the
    same search started again with it goes on where it was and finds identical scores. Under torchrun the ranks measure
    different edges; all return the scores, the first one writes. Raises :class:`InputError` for a graph of another
    shape, batches that are one-shot or empty, an unknown metric, labels that it needs and that do not fit, a metric
    that is no finite number, or a journal of another search.
    """
    check_fits(model, graph)
    metric = metric_named(metric)
    sign = -1.0 if metric.name.startswith("accuracy") else 1.0
    with eval_mode(model):
        objective = objective_of(model, batches, graph, ablation, metric)
        search = identity("exact", model, graph, ablation, metric, data=objective.digest(),
                          images=objective.num_images)
        with Journal(journal, search, graph.edge_names, Score) as log:
            scores = _measure(objective, sign, log, progress)
    about = {name: value for name, value in search.items() if name != "graph"}
    return EdgeScores(graph, scores, {**about, "value": objective.dense})


def _measure(objective: WholeObjective, sign: float, log: Journal, progress: bool) -> np.ndarray:
    """The scores [E], beginning with those in the journal; the bar is quiet when the output is no terminal."""
    from tqdm import tqdm

    names, scores = objective.graph.edge_names, [line.score for line in log.lines]
    with tqdm(total=len(names), initial=len(scores), desc="exact", unit="edge",
              disable=None if progress else True) as bar:
        for block in objective.blocks:
            for rises in _rises(objective, block, len(scores) - block.start):
                for rise in rises:
                    log.record(Score(names[len(scores)], sign * rise))
                    scores.append(sign * rise)
                    bar.update()
    return np.array(scores)


def _rises(objective: WholeObjective, block: range, done: int) -> Iterator[list[float]]:
    """metric(cut) - metric(all edges) for the edges of a block, round by round, without the first ``done``.

    Both metrics are of one kind of run, so that a cut without effect gives exactly 0. Rounds are the same whether a
    search was interrupted or not, because the size of a run can show in the last bits of its results.
    """
    if done >= len(block):
        return
    if not objective.matters(block.start):
        yield [0.0] * (len(block) - done)
        return
    objective.turn_to(block.start)
    reference, = objective.values([objective.keep])
    for first in range(0, len(block), objective.at_once):
        edges = block[first: first + objective.at_once]
        if first + len(edges) > done:
            values = objective.values([_without(objective.keep, edge) for edge in edges])
            bad = next((edge for edge, value in zip(edges, values, strict=True) if not math.isfinite(value)), None)
            if bad is not None:
                raise InputError("the metric without an edge is no finite number", found="NaN or infinity",
                                 where=objective.graph.edge_name(bad), remedy="look at the ablation's values")
            yield [value - reference for value in values[max(done - first, 0):]]


def _without(keep: np.ndarray, edge: int) -> np.ndarray:
    found = keep.copy()
    found[edge] = False
    return found
