"""Does a circuit do what the model does?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..circuit import Graph
from ..errors import InputError
from ..model.edgewise import Edgewise, ablation_constants, check_fits, edge_weights
from ..model.vit import ViT
from .ablation import Ablation
from .batches import pairs
from .evaluate import check_labels, device_of, eval_mode
from .metrics import Metric, metric_named


@torch.no_grad()
def circuit_metrics(model: ViT, batches: Iterable[tuple[Tensor, Tensor | None]], keeps: Sequence, *, graph: Graph,
                    ablation: Ablation, metrics: Sequence[str | Metric] = ("kl",)) -> np.ndarray:
    """[metrics, circuits] float64: means over all images of ``metrics`` for each of ``keeps`` (bool or float [E]).

    What the circuits share is computed once per batch: the dense logits, the embedding and the ablation constants.
    Raises :class:`InputError` for a graph of another shape, batches that are one-shot or empty, an unknown metric, and
    labels that are missing where a metric needs them.
    """
    check_fits(model, graph)
    metrics = [metric_named(metric) for metric in metrics]
    totals, count = np.zeros((len(metrics), len(keeps))), 0
    with eval_mode(model):
        for index, (images, labels) in enumerate(pairs(batches, device_of(model))):
            dense_logits = model(images).double()
            if any(metric.needs_labels for metric in metrics):
                check_labels(labels, dense_logits.shape, where=f"batch {index}")
            constants = ablation_constants(model, images, graph=graph, ablation=ablation, labels=labels)
            edgewise = Edgewise(model, graph, constants)
            stack = edgewise.start(images)
            for column, keep in enumerate(keeps):
                logits = edgewise.resume(stack, 0, edge_weights(keep, graph, like=images)).double()
                totals[:, column] += [float(metric(logits, labels, dense_logits)) * len(images) for metric in metrics]
            count += len(images)
    if not count:
        raise InputError("there are no images to evaluate on", where="batches", expected="at least one batch")
    return totals / count
