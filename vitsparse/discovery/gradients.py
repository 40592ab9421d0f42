"""The metric of a circuit and its gradient in the weight of every edge."""

from __future__ import annotations

import torch
from torch import Tensor

from ..circuit import Graph
from ..evaluation.ablation import Ablation
from ..evaluation.evaluate import check_labels
from ..evaluation.metrics import Metric
from ..model.edgewise import Edgewise, ablation_constants, check_fits
from ..model.vit import ViT


class EdgeGradients:
    """``(images, labels, keep) -> (value, gradient)``: sums over the images of a metric and of dM/dkeep [E].

    ``keep`` is a float tensor [E] of any weights (None: the dense model, all ones). Both results are float64. Raises
    :class:`InputError` for a graph of another shape, and for labels that the metric needs and that do not fit.
    """

    def __init__(self, model: ViT, graph: Graph, ablation: Ablation, metric: Metric, *, rules: str = "gradient"):
        check_fits(model, graph)
        self.model, self.graph, self.ablation, self.metric, self.rules = model, graph, ablation, metric, rules

    def __call__(self, images: Tensor, labels: Tensor | None, keep: Tensor | None = None,
                 dense_logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            dense_logits = self.model(images) if dense_logits is None else dense_logits
            constants = ablation_constants(self.model, images, graph=self.graph, ablation=self.ablation, labels=labels)
        if self.metric.needs_labels:
            check_labels(labels, dense_logits.shape, where="labels")
        keep = torch.ones(self.graph.num_edges) if keep is None else keep
        weights = keep.detach().to(images).requires_grad_()
        with torch.enable_grad():
            logits = Edgewise(self.model, self.graph, constants).run(images, weights)
            value = self.metric(logits.double(), labels, dense_logits.double()) * len(images)
            gradient, = torch.autograd.grad(value, weights)
        return value.detach(), gradient.double()
