"""The metric of a circuit and its gradient in the weight of every edge."""

from __future__ import annotations

import torch
from torch import Tensor

from ..circuit import Graph
from ..evaluation.ablation import Ablation
from ..evaluation.evaluate import check_labels
from ..evaluation.metrics import Metric
from ..model.edgewise import edge_weights
from ..model.vit import ViT
from .passes import Passes


class EdgeGradients:
    """``(images, labels, keep) -> (value, gradient)``: sums over the images of a metric and of dM/dkeep [E], float64.

    ``keep`` is a float tensor [E] of any weights; None is the dense model. ``dense_logits`` [B, K], for metrics that
    compare with them, are computed where they are not given. The model is used as it is now, in the mode it is in
    when called (eval is meant). A large batch is cut into parts, so memory does not grow with it. Raises
    :class:`InputError` for a graph of another shape, and for labels that the metric needs and that do not fit.
    """

    @torch.no_grad()
    def __init__(self, model: ViT, graph: Graph, ablation: Ablation, metric: Metric, *, relevance: bool = False):
        self._passes, self._metric = Passes(model, graph, ablation, relevance=relevance), metric

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor | None, keep: Tensor | None = None,
                 dense_logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        passes, graph = self._passes, self._passes.graph
        if self._metric.needs_labels:
            check_labels(labels, torch.Size((len(images), passes.model.num_classes)), where="labels")
        rows = passes.all_ones if keep is None else passes.rows(edge_weights(keep, graph, like=passes.model.pos_embed))
        is_dense = all(row is None for row in rows)
        if dense_logits is None and not is_dense:
            dense_logits = passes.model(images)
        value = torch.zeros((), dtype=torch.float64, device=images.device)
        gradient = torch.zeros(graph.num_edges, dtype=torch.float64, device=images.device)
        for part in passes.parts(images, labels):
            trace = passes.forward(part, rows)
            dense = trace.logits.detach() if dense_logits is None else dense_logits[part.images]
            with torch.enable_grad():
                part_value = metric_sum(self._metric, trace.logits, labels, dense, part.images)
            gradient += passes.backward(trace, part_value, part.differences, rows)
            value += part_value.detach()
        return value, gradient


def metric_sum(metric: Metric, logits: Tensor, labels: Tensor | None, dense_logits: Tensor, images: slice) -> Tensor:
    """The metric summed over the ``images`` of a batch; ``labels`` are those of the batch, the logits of the images."""
    labels = labels[images] if isinstance(labels, Tensor) else None
    return metric(logits.double(), labels, dense_logits.double()) * len(logits)
