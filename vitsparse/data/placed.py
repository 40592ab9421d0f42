"""Where the pixels of an ImageSet are read from: the device that wants them if they fit there, else host memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .image_set import ImageSet

FREE_SHARE = 1 / 4  # of a GPU's free memory may hold pixels: a model and what it remembers for backward need the rest
ROWS_AT_ONCE = 2048  # 25 MB of 64x64 pixels on their way to a device


class Placed:
    """The first ``limit`` images of ``data`` for batches on ``device``.

    A GPU gets a copy of all of them once, where that leaves it room; then nothing has to be brought for a batch. Where
    it does not, a batch is gathered in host memory and follows from a pinned copy, which the host does not wait for.
    ``resident`` overrules the choice. ``home`` is the device on which :meth:`take` wants its rows.
    """

    def __init__(self, data: ImageSet, device: str | torch.device, limit: int | None = None,
                 resident: bool | None = None):
        self.device = torch.device(device)
        self.arrays = data.images[:limit], data.labels[:limit]
        self.resident = fits(sum(array.nbytes for array in self.arrays), self.device) if resident is None else resident
        self.home = self.device if self.resident else torch.device("cpu")
        self.copies = tuple(_copy(array, self.device) for array in self.arrays) if self.resident else ()

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, C] and int64 [B] on the device, of the images ``rows`` int64 [B]."""
        if self.resident:
            pixels, labels = (copy.index_select(0, rows) for copy in self.copies)
        else:  # indexing copies, so a read-only memory map is fine
            pixels, labels = (self.bring(torch.from_numpy(np.ascontiguousarray(array[rows.numpy()])))
                              for array in self.arrays)
        return pixels, labels

    def bring(self, tensor: Tensor) -> Tensor:
        """A tensor at home, on the device."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def fits(size: int, device: torch.device) -> bool:
    """Whether ``size`` bytes of images are to be copied to a device; the CPU has them already."""
    if device.type == "cuda":
        return size <= FREE_SHARE * torch.cuda.mem_get_info(device)[0]
    return device.type != "cpu"


def _copy(array: np.ndarray, device: torch.device) -> Tensor:
    """In pieces, so that the host holds no second copy of a memory map."""
    pieces = (torch.from_numpy(np.array(array[start:start + ROWS_AT_ONCE]))
              for start in range(0, len(array), ROWS_AT_ONCE))
    first = next(pieces)
    copy = torch.empty(array.shape, dtype=first.dtype, device=device)
    copy[:len(first)].copy_(first)
    for number, piece in enumerate(pieces, start=1):
        copy[number * ROWS_AT_ONCE:][:len(piece)].copy_(piece)
    return copy
