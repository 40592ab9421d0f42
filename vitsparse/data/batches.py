"""Batches of an ImageSet: in data set order for measuring, shuffled and augmented for training."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InputError
from . import draws
from .augment import Augmentation, Drawn, augment, one_hot
from .image_set import ImageSet
from .mixing import Mix, mix
from .placed import Placed
from .ranks import Ranks
from .transforms import normalize, to_float

DRAWN_AT_ONCE = 4096  # images: their parameters are few numbers each, and cost more to launch than to draw
BLOCK = 32  # images that a CPU augments at once: what they go through then stays in its cache


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
        data, placed = self.image_set, self._placed
        for rows in torch.arange(self.num_images, device=placed.home).split(self.batch_size):
            pixels, labels = placed.take(rows)
            yield normalize(to_float(pixels), data.mean, data.std), labels

    @functools.cached_property
    def _placed(self) -> Placed:
        return Placed(self.image_set, self.device, self.num_images)


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
        order = draws.permutation(self.seed, epoch, len(self.image_set), self._placed.home)
        steps = range(start_step, self.steps_per_epoch)
        at_once = max(1, DRAWN_AT_ONCE // self.batch_size)
        for chunk in (steps[start:start + at_once] for start in range(0, len(steps), at_once)):
            parts = [self._part(order[step * self.batch_size:(step + 1) * self.batch_size]) for step in chunk]
            for rows, drawn in zip(parts, self._draw(epoch, parts), strict=True):
                yield self._batch(epoch, rows, drawn)

    @functools.cached_property
    def _placed(self) -> Placed:
        return Placed(self.image_set, self.device)

    def _part(self, batch: Tensor) -> Tensor:
        """This rank's part of the ``batch`` of data set indices int64 [B], after the image before it if it mixes.

        An image is mixed with the one before it in the whole batch; before the first one is the last.
        """
        part = self.ranks.part(len(batch))
        return batch[torch.arange(part.start - self.augmentation.mixes, part.stop, device=batch.device)]

    def _draw(self, epoch: int, parts: list[Tensor]) -> Iterator[Drawn]:
        """What is drawn for each of ``parts``, for all of them together."""
        indices = self._placed.bring(torch.cat(parts))
        uniform = functools.partial(draws.uniform, self.seed, epoch, indices)
        drawn = self.augmentation.draw(uniform, self.image_set.images.shape[1:3])
        stops = itertools.accumulate(map(len, parts))
        return (_rows(drawn, slice(stop - len(part), stop)) for part, stop in zip(parts, stops, strict=True))

    def _batch(self, epoch: int, rows: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """The images ``rows``, block by block."""
        pixels, labels = self._placed.take(rows)
        indices, targets = self._placed.bring(rows), one_hot(labels, self.num_classes)
        size = BLOCK if pixels.device.type == "cpu" else len(rows)
        blocks, last = [], None
        for start in range(0, len(rows), size):
            block = slice(start, start + size)
            images = self._augmented(epoch, indices[block], pixels[block], _rows(drawn, block))
            if not self.augmentation.mixes:
                blocks.append((images, targets[block]))
                continue
            with_last = images if last is None else torch.cat([last, images])
            own, last = slice(max(start, 1), start + size), images[-1:]
            blocks.append(mix(with_last, targets[own.start - 1:own.stop], Mix(drawn["share"][own], drawn["cut"][own])))
        return tuple(map(torch.cat, zip(*blocks, strict=True)))

    def _augmented(self, epoch: int, indices: Tensor, pixels: Tensor, drawn: Drawn) -> Tensor:
        data, noise, noise_std = self.image_set, None, self.augmentation.noise_std
        if noise_std:
            noise = draws.normal(self.seed, epoch, indices, "noise", pixels[0].numel()).mul_(noise_std)
        return augment(pixels, drawn, noise, (data.mean, data.std))


def _rows(drawn: Drawn, rows: slice) -> Drawn:
    return {name: parameters[rows] for name, parameters in drawn.items()}


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} must be positive", where=name, found=value)
