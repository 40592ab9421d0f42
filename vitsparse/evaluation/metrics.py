"""Pure functions from logits to a number, and the metrics that searches lower.

Logits are [B, K]; every result is a mean over images and differentiable (accuracy aside), computed in fp32 or better.
:func:`metric_named` gives a :class:`Metric`, whose one signature is ``(logits, labels, dense_logits)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError, nearest


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


def margin(logits: Tensor, labels: Tensor, dense_logits: Tensor) -> Tensor:
    """Mean over images of the label's logit minus that of the class which the dense model ranks highest besides it."""
    rivals = dense_logits.scatter(-1, labels[:, None], -torch.inf).argmax(-1, keepdim=True)
    return (logits.gather(-1, labels[:, None]) - logits.gather(-1, rivals)).mean()


@dataclass(frozen=True)
class Metric:
    """What a search measures: ``metric(logits, labels, dense_logits)``, a mean over images.

    It grows as a model gets worse (accuracy aside), so cutting an edge that matters raises it. ``name`` identifies it
    in files. ``needs_labels``: else the labels may be None. ``flat_at_dense``: the dense model is its minimum, so its
    gradient there is zero and says nothing.
    """

    name: str
    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    needs_labels: bool = True
    flat_at_dense: bool = False

    def __call__(self, logits: Tensor, labels: Tensor | None, dense_logits: Tensor) -> Tensor:
        return self.function(logits, labels, dense_logits)

    def among(self, classes: Sequence[int]) -> Metric:
        """The same metric of a model that knows only ``classes``: every other logit is left out.

        Labels must be of these classes (:class:`~vitsparse.evaluation.batches.OnlyClasses`). Raises
        :class:`InputError` for fewer than two classes or one given twice.
        """
        chosen = sorted(int(c) for c in classes)
        if len(chosen) < 2 or len(set(chosen)) < len(chosen) or chosen[0] < 0:
            raise InputError("a metric among classes needs two of them or more", where="classes",
                             expected="different class numbers", found=list(classes))
        if self.name.startswith("logit_difference:"):
            raise InputError("this metric names its classes already", where="classes", found=self.name)

        def function(logits: Tensor, labels: Tensor | None, dense_logits: Tensor) -> Tensor:
            columns = torch.tensor(chosen, device=logits.device)
            if chosen[-1] >= logits.shape[-1]:
                raise InputError("the model does not have this class", where="classes",
                                 expected=f"0 to {logits.shape[-1] - 1}", found=chosen[-1])
            if labels is not None:
                labels = torch.searchsorted(columns, labels)
            return self.function(logits[:, columns], labels, dense_logits[:, columns])

        return replace(self, name=f"{self.name} among {','.join(map(str, chosen))}", function=function)


METRICS = {metric.name: metric for metric in (
    Metric("ce", lambda logits, labels, dense_logits: cross_entropy(logits, labels)),
    Metric("kl", lambda logits, labels, dense_logits: kl(logits, dense_logits), needs_labels=False, flat_at_dense=True),
    Metric("logit_difference", lambda logits, labels, dense_logits: -margin(logits, labels, dense_logits)),
    Metric("accuracy", lambda logits, labels, dense_logits: accuracy(logits, labels)),
)}


def metric_named(name: str | Metric) -> Metric:
    """The metric of that name (one given as such stays as it is).

    ``ce``; ``kl`` from the dense model; ``logit_difference``, minus :func:`margin`; ``logit_difference:a:b``, minus
    the difference of two class numbers: both with a minus, because a search lowers its metric; ``accuracy``. An
    unknown name raises :class:`InputError` with the nearest one.
    """
    if isinstance(name, Metric):
        return name
    kind, *classes = str(name).split(":")
    if kind == "logit_difference" and len(classes) == 2 and all(c.isdecimal() for c in classes):
        return _between(str(name), *map(int, classes))
    if name not in METRICS:
        raise InputError("unknown metric", where="metric", expected=" or ".join([*METRICS, "logit_difference:a:b"]),
                         found=repr(name), remedy=nearest(kind, METRICS))
    return METRICS[name]


def _between(name: str, a: int, b: int) -> Metric:
    def function(logits: Tensor, labels: Tensor | None, dense_logits: Tensor) -> Tensor:
        if a == b or max(a, b) >= logits.shape[-1]:
            raise InputError("the metric needs two different classes of the model", where="metric",
                             expected=f"logit_difference:a:b with a, b from 0 to {logits.shape[-1] - 1}", found=name)
        return -logit_difference(logits, a, b)

    return Metric(name, function, needs_labels=False)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
