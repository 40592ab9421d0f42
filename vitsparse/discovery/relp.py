"""RelP, relevance patching (Jafari et al., "RelP: Faithful and Efficient Circuit Discovery via Relevance Patching",
2025, arXiv:2508.21258): EAP with the propagation coefficients of layer-wise relevance propagation for the gradient.

    LayerNorm    x -> (x - mean) / deviation, the deviation held constant           (LN rule, Ali et al. 2022)
    GELU         x -> c x with c = GELU(x) / x held constant                        (identity rule)
    attention    z = pattern @ v and scores = q @ k^T: each factor gets one half    (half rule, Arras et al. 2019)

Linear maps and the softmax keep their gradient. Because the half rule divides at both products, q and k get a quarter
of their gradient and v a half. The rules are conventions: a score is no slope of the metric any more, although it is
in its unit. Each input of an OR gate still scores about 0.
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


def relp(model: ViT, batches: Iterable[tuple[Tensor, Tensor]], *, graph: Graph, ablation: Ablation,
         metric: str | Metric = "ce", journal: str | os.PathLike | None = None, progress: bool = True) -> EdgeScores:
    """The score of every edge, float64 [E]. Arguments, cost and errors are those of :func:`~.eap.eap`."""
    task = Attribution("relp", model, batches, graph, ablation, metric_named(metric), {})
    return scores_at_dense(task, "relp", journal, progress)
