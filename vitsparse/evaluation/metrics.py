"""Pure functions from logits to a number. Logits are [B, K]; every result is a mean over images and differentiable
(accuracy aside), computed in fp32 or better.

:data:`METRICS` gives the ones that need nothing but a batch under one signature ``(logits, labels, dense_logits)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError, nearest

Metric = Callable[[Tensor, Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over images of ``-log p[label]`` in nats; ``labels`` int64 [B]."""
    return -_log_softmax(logits).gather(-1, labels[:, None]).mean()


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of images, 0 to 1, whose largest logit is the label's; ``labels`` int64 [B]."""
    return (logits.argmax(-1) == labels).to(torch.promote_types(logits.dtype, torch.float32)).mean()


def kl(logits: Tensor, dense_logits: Tensor) -> Tensor:
    """Mean over images of ``KL(p_dense || p_circuit) = sum_k p_dense (log p_dense - log p_circuit)`` in nats."""
    circuit, dense = _log_softmax(logits), _log_softmax(dense_logits)
    return (dense.exp() * (dense - circuit)).sum(-1).mean()


def logit_difference(logits: Tensor, a: int, b: int) -> Tensor:
    """Mean over images of ``logits[a] - logits[b]`` for two class numbers (Wang et al. 2023)."""
    return (logits[:, a] - logits[:, b]).mean()


METRICS: dict[str, Metric] = {
    "ce": lambda logits, labels, dense_logits: cross_entropy(logits, labels),
    "kl": lambda logits, labels, dense_logits: kl(logits, dense_logits),
    "accuracy": lambda logits, labels, dense_logits: accuracy(logits, labels),
}


def metric_named(name: str) -> Metric:
    """The entry of :data:`METRICS`; an unknown name raises :class:`InputError` with the nearest one."""
    if name not in METRICS:
        raise InputError("unknown metric", where="metric", expected=" or ".join(METRICS), found=repr(name),
                         remedy=nearest(name, METRICS))
    return METRICS[name]


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
