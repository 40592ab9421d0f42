"""How sure an accuracy is: intervals from the answers to single images, alone and for two models on the same ones."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from .batches import pairs
from .evaluate import check_labels, device_of, eval_mode

Z95 = 1.959963984540054  # of the normal distribution: 2.5 % lie above


@torch.no_grad()
def right_answers(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> np.ndarray:
    """[N] bool: whether ``model`` in eval mode names the label of each image first, in the order of ``batches``.

    Raises :class:`InputError` as :func:`~.evaluate.evaluate` does.
    """
    found = []
    with eval_mode(model):
        for index, (images, labels) in enumerate(pairs(batches, device_of(model))):
            logits = model(images)
            check_labels(labels, logits.shape, where=f"batch {index}")
            found.append((logits.argmax(-1) == labels).cpu().numpy())
    if not found:
        raise InputError("there are no images to evaluate on", where="batches", expected="at least one batch")
    return np.concatenate(found)


def share_interval(right: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the share of True in ``right`` [N], by Wilson's score (Wilson 1927)."""
    count = len(right)
    if not count:
        raise InputError("there is no share of nothing", where="right", expected="at least one answer")
    share, spread = float(right.mean()), Z95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return centre - half, centre + half


def paired_difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """(difference of the shares of True, low, high): its 95 % interval for answers [N] to the same images.

    Images that both get right or both get wrong say nothing: with b and c that only one gets right, the difference is
    (b - c) / N. The interval is that of Agresti and Min (2005), Wald's after adding half an image to each of the four
    cells, which holds its level where few answers differ. It holds for these two models on images like these; what
    training them again would change is not in it.
    """
    if ours.shape != theirs.shape or not len(ours):
        raise InputError("the answers are not to the same images", where="paired_difference",
                         expected=f"{theirs.shape} answers", found=str(ours.shape))
    b, c, count = int((ours & ~theirs).sum()) + 0.5, int((theirs & ~ours).sum()) + 0.5, len(ours) + 2
    centre = (b - c) / count
    half = Z95 * math.sqrt((b + c) / count - centre**2) / math.sqrt(count)
    return (int(ours.sum()) - int(theirs.sum())) / len(ours), centre - half, centre + half
