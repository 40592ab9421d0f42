"""The baseline that knows nothing: random scores."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from ..circuit import EdgeScores, Graph
from ..evaluation.ablation import Ablation
from ..evaluation.metrics import Metric
from ..model.edgewise import check_fits
from ..model.vit import ViT
from .magnitude import without_images


def random(model: ViT, batches: Iterable[tuple[Tensor, Tensor]] | None = None, *, graph: Graph,  # noqa: PLR0913
           ablation: Ablation, metric: str | Metric = "ce", seed: int = 0,
           journal: str | os.PathLike | None = None, progress: bool = True) -> EdgeScores:
    """Scores that are independent and uniform in [0, 1): what every method has to beat. The same for the same ``seed``.

    ``batches``, ``metric``, ``journal`` and ``progress`` are those of every method and unused: nothing is measured, and
    nothing takes long. Raises :class:`InputError` for a graph of another shape.
    """
    check_fits(model, graph)
    values = np.random.default_rng(seed).random(graph.num_edges)
    return EdgeScores(graph, values, without_images("random", model, ablation, seed=seed))
