"""Corrupted images for counterfactual ablations: ``corruption(images, labels) -> images`` of the same shape.

Each is a frozen value, called with images float [B, C, H, W] and labels int64 [B] (or None where they are not read).
There is no generator behind them: the same batch gives the same images on every call and device. What is drawn for one
image belongs to that image (:func:`_image_keys`), so that it does not depend on where batches are cut; only
:class:`OtherClass` and :class:`Permute` take another image of the batch, and so depend on what is in it.

:func:`corruption_named` makes one by the name that the command line uses (:data:`CORRUPTIONS`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..errors import InputError, nearest
from . import draws

Corruption = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class OtherClass:
    """Each image becomes one of another class of the batch, any of them with equal chance.

    Raises :class:`InputError` without labels, and for a batch of a single class.
    """

    seed: int = 0

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        if not isinstance(labels, Tensor) or labels.shape != images.shape[:1]:
            raise InputError("labels are needed to find images of another class", where="labels",
                             expected=f"int64 labels [{len(images)}]", found=_shape_or_type(labels))
        other = labels[:, None] != labels.to(images.device)
        count = other.sum(1)
        if not count.all():
            raise InputError("every image of the batch is of one class", where="labels", expected="two classes or more",
                             found=f"{len(images)} images of class {int(labels[0])}", remedy="shuffle the data set")
        chosen = _drawn(torch.arange(len(images), device=images.device), self.seed, "corrupt.class", 1)[:, 0] * count
        return images[(other.cumsum(1) > chosen.long()[:, None]).int().argmax(1)]


@dataclass(frozen=True)
class Permute:
    """Each image becomes another one of the batch, none stays: a random cycle through all of them.

    Raises :class:`InputError` for a batch of a single image.
    """

    seed: int = 0

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        if len(images) == 1:
            raise InputError("a single image cannot change places with another", where="images",
                             expected="batches of two images or more", found="1 image",
                             remedy="choose a batch size that leaves no single image over")
        order = draws.permutation(self.seed, 0, len(images)).to(images.device)
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)
        return images[partner]


@dataclass(frozen=True)
class SwapPatches:
    """The patches of each image in a random order: its colours and textures without its shapes.

    ``patch_size`` in pixels, best that of the model. Raises :class:`InputError` where it does not divide the sides of
    the images.
    """

    patch_size: int
    seed: int = 0

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        height, width = images.shape[-2:]
        if self.patch_size < 1 or height % self.patch_size or width % self.patch_size:
            raise InputError("the images cannot be cut into such patches", where="patch_size", found=self.patch_size,
                             expected=f"a divisor of {height} and {width}")
        sizes = {"p1": self.patch_size, "p2": self.patch_size, "h": height // self.patch_size}
        patches = rearrange(images, "b c (h p1) (w p2) -> b (h w) c p1 p2", **sizes)
        order = _drawn(_image_keys(images), self.seed, "corrupt.patches", patches.shape[1]).argsort(1)
        swapped = patches[torch.arange(len(images), device=images.device)[:, None], order]
        return rearrange(swapped, "b (h w) c p1 p2 -> b c (h p1) (w p2)", **sizes)


@dataclass(frozen=True)
class Blur:
    """A Gaussian of ``sigma`` pixels, cut at three sigma, mirrored at the border (``gaussian_blur`` of torchvision)."""

    sigma: float = 4.0

    def __post_init__(self):
        _check_positive(self.sigma, "sigma")

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        channels = images.shape[1]
        for axis in (2, 3):
            radius = min(math.ceil(3 * self.sigma), images.shape[axis] - 1)  # what mirroring at the border allows
            x = torch.arange(-radius, radius + 1, dtype=torch.float64, device=images.device)
            weight = torch.softmax(-(x / self.sigma).square() / 2, 0).to(images.dtype)
            kernel = weight.reshape(1, 1, -1, 1) if axis == 2 else weight.reshape(1, 1, 1, -1)
            padding = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
            images = F.conv2d(F.pad(images, padding, mode="reflect"), kernel.expand(channels, -1, -1, -1),
                              groups=channels)
        return images


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of standard deviation ``std`` is added, in the units of the (normalised) images."""

    std: float = 1.0
    seed: int = 0

    def __post_init__(self):
        _check_positive(self.std, "std")

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        noise = draws.normal(self.seed, 0, _image_keys(images), "corrupt.noise", images[0].numel())
        return images + self.std * noise.view(images.shape).to(images)


@dataclass(frozen=True, eq=False)
class MeanImage:
    """Every image becomes ``mean`` [C, H, W], that of a data set (:meth:`of`)."""

    mean: Tensor

    @classmethod
    def of(cls, batches: Iterable[tuple[Tensor, Tensor]]) -> MeanImage:
        """The mean over all images of ``batches``, read once; :class:`InputError` where there is none."""
        total, count = None, 0
        for images, _ in batches:
            total = images.double().sum(0) + (0 if total is None else total)
            count += len(images)
        if total is None:
            raise InputError("no images to take the mean over", where="batches", expected="at least one batch",
                             found="none")
        return cls((total / count).float())

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.mean.to(images).expand(len(images), *self.mean.shape)


CORRUPTIONS: dict[str, Callable[[int, int, Iterable[tuple[Tensor, Tensor]]], Corruption]] = {
    "other_class": lambda seed, patch_size, batches: OtherClass(seed),
    "permute": lambda seed, patch_size, batches: Permute(seed),
    "swap_patches": lambda seed, patch_size, batches: SwapPatches(patch_size, seed),
    "blur": lambda seed, patch_size, batches: Blur(),
    "noise": lambda seed, patch_size, batches: Noise(seed=seed),
    "mean_image": lambda seed, patch_size, batches: MeanImage.of(batches),
}


def corruption_named(name: str, *, patch_size: int, batches: Iterable[tuple[Tensor, Tensor]],
                     seed: int = 0) -> Corruption:
    """The corruption of that name: ``patch_size`` is the model's, ``batches`` are what ``mean_image`` is the mean of.

    Raises :class:`InputError` for an unknown name, with the nearest one.
    """
    if name not in CORRUPTIONS:
        raise InputError("unknown corruption", where="corruption", expected=" or ".join(CORRUPTIONS), found=repr(name),
                         remedy=nearest(name, CORRUPTIONS))
    return CORRUPTIONS[name](seed, patch_size, batches)


def _image_keys(images: Tensor) -> Tensor:
    """int64 [B]: a number made from the pixels of each image, in integers, so that it is the same on every device."""
    bits = images.float().flatten(1).contiguous().view(torch.int32).long()
    odd = 2 * torch.arange(bits.shape[1], device=images.device) + 1
    return (bits * (odd * draws.GOLDEN)).sum(1)


def _drawn(keys: Tensor, seed: int, purpose: str, n: int) -> Tensor:
    """float32 [B, n] in [0, 1), for int64 keys [B]."""
    return draws.uniform(seed, 0, keys, purpose, n)


def _check_positive(value: float, where: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError("a corruption needs a strength", where=where, expected="a number above 0", found=value)


def _shape_or_type(value: object) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
