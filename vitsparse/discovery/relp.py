"""RelP, relevance patching (Jafari et al., "RelP: Faithful and Efficient Circuit Discovery via Relevance Patching",
2025, arXiv:2508.21258): EAP with the propagation coefficients of layer-wise relevance propagation for the gradient.

    LayerNorm    x -> (x - mean) / deviation with the deviation held constant       (LN rule, Ali et al. 2022)
    GELU         x -> c x with c = GELU(x) / x held constant                        (identity rule)

Linear maps and attention keep their gradient. The paper halves relevance at multiplicative gates, which a ViT does not
have. Halving it at the two products of attention instead, or holding the pattern constant (Ali et al.; then no edge
into a query or key scores anything), was tried: both agreed less with ``exact`` on a trained model.

The rules are conventions, so a score is no slope of the metric any more; on a linear model it still is the truth. Each
input of an OR gate scores 0 as with EAP.
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
    return scores_at_dense(task, journal, progress, relevance=True)
