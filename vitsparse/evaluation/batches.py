"""Reading ``batches``: the checks that everything taking them shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError


def pairs(batches: Any, device: torch.device | None) -> Iterator[tuple[Tensor, Any]]:
    """(images, labels) of every batch on ``device`` (None: where they are), once.

    Labels may be anything where nobody reads them. Raises :class:`InputError` for a one-shot iterator and for a batch
    that is no such pair.
    """
    check_batches(batches)
    for index, batch in enumerate(batches):
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], Tensor):
            found = [type(part).__name__ for part in batch] if isinstance(batch, tuple | list) else type(batch).__name__
            raise InputError("a batch must be a pair of images and labels", where=f"batch {index}",
                             expected="(images [B, C, S, S], labels [B]), both tensors", found=found)
        images, labels = batch
        yield images.to(device=device), labels.to(device=device) if isinstance(labels, Tensor) else labels


def check_batches(batches: Any) -> None:
    """Refuse what can be read only once: ``batches`` is a re-iterable of (images, labels), as a list or DataLoader."""
    if not hasattr(batches, "__iter__"):
        raise InputError("batches must be iterable", where="batches", found=type(batches).__name__,
                         expected="a list or DataLoader of (images, labels)")
    if iter(batches) is batches:
        raise InputError("batches can be read only once", where="batches",
                         expected="a re-iterable such as a list or a DataLoader", found=type(batches).__name__,
                         remedy="wrap it: list(batches)")


@dataclass(frozen=True)
class OnlyClasses:
    """The images of ``batches`` whose label is one of ``classes``: a re-iterable, batches without any left out.

    For the circuit of a part of the classes, together with :meth:`~vitsparse.evaluation.metrics.Metric.among`.
    """

    batches: Iterable[tuple[Tensor, Tensor]]
    classes: Sequence[int]

    def __post_init__(self):
        check_batches(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in pairs(self.batches, None):
            if not isinstance(labels, Tensor):
                raise InputError("labels are needed to choose classes", where="batches", expected="int64 labels [B]",
                                 found=type(labels).__name__)
            chosen = torch.isin(labels, torch.tensor(list(self.classes), device=labels.device))
            if chosen.any():
                yield images[chosen], labels[chosen]
