"""Batches of an ImageSet: in data set order for measuring, shuffled and augmented for training."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from . import draws
from .augment import Augmentation, augment, one_hot
from .image_set import ImageSet
from .mixing import mix
from .ranks import Ranks
from .transforms import normalize, to_float


@dataclass(frozen=True, eq=False)
class Batches:
    """The images in data set order as (normalised float32 [B, C, H, W], labels int64 [B]), as often as wanted.

    The last batch may be smaller. ``limit`` takes only so many images from the front.
    """

    image_set: ImageSet
    batch_size: int
    device: str | torch.device = "cpu"
    limit: int | None = None

    def __post_init__(self):
        _require_positive("batch_size", self.batch_size)
        if self.limit is not None:
            _require_positive("limit", self.limit)

    @property
    def num_images(self) -> int:
        """How many images one pass yields."""
        return len(self.image_set) if self.limit is None else min(self.limit, len(self.image_set))

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = self.image_set
        for start in range(0, self.num_images, self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, self.num_images))
            pixels, labels = _gather(images, rows, self.device)
            yield normalize(to_float(pixels), images.mean, images.std), labels


@dataclass(frozen=True, eq=False)
class TrainStream:
    """Shuffled, augmented batches (images float32 [B, C, H, W], soft targets float32 [B, K]).

    Batch ``step`` of epoch ``epoch`` is a pure function of the seed, these two numbers and the images: a run that is
    killed and resumed sees exactly the batches it would have seen. All draws come from :mod:`vitsparse.data.draws`.
    With several ``ranks`` each yields its part of every batch, the same images as one process would have there.
    """

    image_set: ImageSet
    batch_size: int
    seed: int = field(kw_only=True)
    num_classes: int = field(kw_only=True)
    augmentation: Augmentation = field(kw_only=True, default_factory=Augmentation)
    device: str | torch.device = field(kw_only=True, default="cpu")
    drop_last: bool = field(kw_only=True, default=True)
    ranks: Ranks = field(kw_only=True, default=Ranks())

    def __post_init__(self):
        _require_positive("batch_size", self.batch_size)
        if self.num_classes < len(self.image_set.classes):
            raise InputError("the targets have fewer classes than the images", where="num_classes",
                             expected=f"at least {len(self.image_set.classes)}", found=self.num_classes)
        if self.steps_per_epoch == 0:
            raise InputError("the data set does not fill one batch", where="batch_size",
                             expected=f"at most {len(self.image_set)}", found=self.batch_size,
                             remedy="take a smaller batch or drop_last=False")
        smallest = self.batch_size if self.drop_last else len(self.image_set) % self.batch_size or self.batch_size
        if smallest < self.ranks.world:
            raise InputError("a batch does not have an image for every rank", where="batch_size",
                             expected=f"at least {self.ranks.world} images in a batch", found=smallest)

    @property
    def steps_per_epoch(self) -> int:
        full, rest = divmod(len(self.image_set), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch (this rank's part of each) from ``start_step`` on."""
        order = draws.permutation(self.seed, epoch, len(self.image_set))
        for step in range(start_step, self.steps_per_epoch):
            yield self._batch(epoch, order[step * self.batch_size:(step + 1) * self.batch_size])

    def _batch(self, epoch: int, batch: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's part of the ``batch`` of data set indices int64 [B]."""
        data, part, mixes = self.image_set, self.ranks.part(len(batch)), self.augmentation.mixes
        # An image is mixed with the one before it in the whole batch, so a part needs one image more; -1 is the last.
        indices = batch[torch.arange(part.start - mixes, part.stop)]
        pixels, labels = _gather(data, indices.numpy(), self.device)
        uniform = functools.partial(draws.uniform, self.seed, epoch, indices)
        normal = functools.partial(draws.normal, self.seed, epoch, indices.to(pixels.device))
        images = augment(pixels, self.augmentation, uniform, normal, (data.mean, data.std))
        targets = one_hot(labels, self.num_classes)
        if not mixes:
            return images, targets
        own = functools.partial(draws.uniform, self.seed, epoch, indices[1:])
        return mix(images, targets, self.augmentation.draw_mix(own, tuple(images.shape[-2:])))


def _gather(data: ImageSet, rows: np.ndarray, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """uint8 [B, H, W, C] and int64 [B] on the device. Indexing copies, so a read-only memory map is fine."""
    pixels, labels = (torch.from_numpy(np.ascontiguousarray(array[rows])) for array in (data.images, data.labels))
    return pixels.to(device), labels.to(device)


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} must be positive", where=name, found=value)
