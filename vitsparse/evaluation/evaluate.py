"""Accuracy, loss and distance from the dense model on a data set."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .batches import pairs
from .metrics import accuracy, cross_entropy, kl

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """``accuracy`` 0 to 1; ``loss`` and ``kl`` (None without a dense model) in nats, means over ``images`` images."""

    accuracy: float
    loss: float
    kl: float | None
    images: int

    def as_dict(self) -> dict[str, float | int | None]:
        return dataclasses.asdict(self)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, *, dense: nn.Module | None = None) -> Evaluation:
    """Run ``model`` in eval mode over ``batches``: re-iterable pairs of images [B, C, H, W] and labels int64 [B].

    With ``dense`` the mean KL(p_dense || p_model) is measured too. Raises :class:`InputError` for a one-shot iterator,
    batches that are no pairs, no images, or labels that are no class of the model.
    """
    # Not inference_mode: a model may cache packed weights here that a later training step needs in autograd.
    totals, images_seen = torch.zeros(3, dtype=torch.float64), 0
    with eval_mode(model, *([] if dense is None else [dense])):
        for index, (images, labels) in enumerate(pairs(batches, device_of(model))):
            logits = model(images)
            check_labels(labels, logits.shape, where=f"batch {index}")
            values = [accuracy(logits, labels), cross_entropy(logits, labels),
                      logits.new_zeros(()) if dense is None else kl(logits, dense(images))]
            totals += torch.stack([value.double() for value in values]).cpu() * len(images)
            images_seen += len(images)
    if not images_seen:
        raise InputError("there are no images to evaluate on", where="batches", expected="at least one batch")
    right, loss, divergence = (totals / images_seen).tolist()
    return Evaluation(right, loss, None if dense is None else divergence, images_seen)


def check_labels(labels: Any, logits_shape: torch.Size, *, where: str) -> None:
    """Raise :class:`InputError` unless ``labels`` [B] are class numbers for logits of shape [B, K]."""
    count, classes = logits_shape
    if not isinstance(labels, Tensor):
        raise InputError("the labels must be a tensor", where=where, expected=f"int64 labels [{count}]",
                         found=type(labels).__name__)
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise InputError("the labels do not fit the images", where=where, expected=f"int64 labels [{count}]",
                         found=f"{str(labels.dtype).removeprefix('torch.')} labels {list(labels.shape)}")
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise InputError("a label is outside the model's classes", where=where, expected=f"0 to {classes - 1}",
                         found=int(outside[0]), remedy="use a model with as many classes as the data set")


def device_of(model: nn.Module) -> torch.device:
    """Where the model's tensors are; CPU for a model without any."""
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


@contextlib.contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Switch every submodule to eval mode and put each back afterwards, also those that were frozen one by one."""
    before = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
