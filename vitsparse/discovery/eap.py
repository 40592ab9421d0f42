"""EAP, edge attribution patching (Syed, Rager and Conmy, "Attribution Patching Outperforms Automated Circuit
Discovery", 2023, arXiv:2310.10348, equation 2): the first-order estimate of cutting each edge, for all edges at once.

    score(i -> j) = mean over images of  sum over tokens and channels of  (a_i - s_i) . dM/dr_j

at the dense model: minus the gradient of the metric M in the weight of the edge. It takes one forward and one backward
(two forwards where the ablation is counterfactual). It is exact where the metric is linear in what was cut, and blind
where the gradient says nothing: a saturated softmax, a GELU that is off. Each input of an OR gate scores 0, since the
other one is enough; so do both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from torch import Tensor

from ..circuit import EdgeScores, Graph
from ..evaluation.ablation import Ablation
from ..evaluation.metrics import Metric, metric_named
from ..model.vit import ViT
from .attribution import Attribution, scores_at_dense


def eap(model: ViT, batches: Iterable[tuple[Tensor, Tensor]], *, graph: Graph, ablation: Ablation,
        metric: str | Metric = "ce", journal: str | os.PathLike | None = None, progress: bool = True) -> EdgeScores:
    """The score of every edge, float64 [E]: how much cutting it would raise ``metric`` if the metric were linear.

    ``batches``: re-iterable of images float [B, C, S, S] and labels int64 [B] (read only where the metric needs them).
    ``journal``: a file of the sum so far, from which the same search started again goes on. Under ``torchrun`` the
    ranks share the batches out. Raises :class:`InputError` for a metric whose gradient at the dense model is zero
    (``"kl"``) or that has none (``"accuracy"``), a graph of another shape or of operators, one-shot or empty batches,
    missing or impossible labels, scores that are no finite numbers, and a journal of another search.
    """
    task = Attribution("eap", model, batches, graph, ablation, metric_named(metric), {})
    return scores_at_dense(task, journal, progress)
