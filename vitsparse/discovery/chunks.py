"""The images of a search: read once, held in memory, and cut into chunks of the size that runs best."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..evaluation.ablation import Ablation
from ..evaluation.batches import pairs
from ..evaluation.evaluate import check_labels, device_of
from ..evaluation.metrics import Metric
from ..model.edgewise import corrupted
from ..model.vit import ViT
from .identity import data_digest
from .stages import Outputs

ROWS = {"cpu": 256, "cuda": 16384}
"""How many rows (images times tokens) a chunk has, about: enough for fast products, not more than caches hold."""


@dataclass
class Chunk:
    """Some images; ``labels`` only where the metric needs them, ``replaced`` (the corrupted ones) only where the
    ablation does.

    ``base`` is what all senders write under the current circuit, ``constants`` what stands in for it on cut edges;
    both None where memory does not reach. ``fixed`` and ``given`` belong to the reader whose edges are being cut: what
    no cut changes of the inputs of later readers; and its own input [B, t, D], in float64 so that hundreds of cuts
    leave no rounding behind.
    """

    images: Tensor
    labels: Tensor | None
    dense_logits: Tensor
    replaced: Tensor | None
    base: Outputs | None = None
    constants: Outputs | None = None
    fixed: list[Tensor] | None = None
    given: Tensor | None = None

    def without(self, senders: Sequence[int]) -> Tensor:
        """``given`` plus a_i - s_i for each sender, added in this order."""
        total = self.given
        for sender in senders:
            ablated, written = (outputs[sender][:, : total.shape[1]] for outputs in (self.constants, self.base))
            total = total + (ablated.double() - written.double())
        return total


def load(model: ViT, batches: Iterable[tuple[Tensor, Any]], ablation: Ablation, metric: Metric) -> list[Chunk]:
    """All images of ``batches``, on the model's device and cut anew. Raises :class:`InputError` for bad batches."""
    columns: list[list[Any]] = [[], [], [], []]
    for index, (images, labels) in enumerate(pairs(batches, device_of(model))):
        logits = model(images)
        if metric.needs_labels:
            check_labels(labels, logits.shape, where=f"batch {index}")
        replaced = None if ablation.corrupt is None else corrupted(ablation, images, labels)
        row = (images, labels if metric.needs_labels else None, logits.double(), replaced)
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    if not sum(len(images) for images in columns[0]):
        raise InputError("there are no images to search with", where="batches", expected="at least one batch")
    size = -(-ROWS[columns[0][0].device.type] // model.config.num_tokens)
    parts = [torch.cat(column).split(size) if isinstance(column[0], Tensor) else None for column in columns]
    return [Chunk(*(None if part is None else part[index] for part in parts)) for index in range(len(parts[0]))]


def digest(chunks: Sequence[Chunk]) -> str:
    """Hex sha256 over images, the labels that count and what the ablation makes of the images."""
    columns = zip(*((chunk.images, chunk.labels, chunk.replaced) for chunk in chunks), strict=True)
    return data_digest([torch.cat(column) for column in columns if column[0] is not None])


def cache_bytes(device: torch.device) -> int:
    """How much memory a search may hold: half of what is free on a GPU, else half of the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
