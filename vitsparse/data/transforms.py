"""Augmentations for a whole batch on its device, with parameters of their own for every image.

Each comes in two halves: ``draw_*`` turns uniform numbers into parameters, a few numbers per image; the other half
applies given parameters, and is a pure function that agrees with ``torchvision.transforms.v2.functional``. Everything
happens where its inputs are: nothing moves between devices, and no value is waited for.
``uniform(purpose, n)`` is :func:`vitsparse.data.draws.uniform` with everything but its last two arguments filled in.

Boxes are int64 [B, 4]: top, left, height, width, in pixels. A box without area means "none".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Uniform = Callable[[str, int], Tensor]

ATTEMPTS = 10  # as in torchvision: so many boxes are tried until one fits into the image


def to_float(images: Tensor) -> Tensor:
    """uint8 [B, H, W, C] to float32 [B, C, H, W] in [0, 1]."""
    planes = rearrange(images, "b h w c -> b c h w")
    return planes.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std per channel; ``images`` [B, C, H, W]."""
    mean, std = (_per_channel(tuple(values), images.dtype, images.device) for values in (mean, std))
    return (images - mean).div_(std)


@functools.lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[C, 1, 1]; kept, since a GPU waits for what comes from the host."""
    return rearrange(torch.tensor(values, dtype=dtype, device=device), "c -> c 1 1")


def draw_flip(uniform: Uniform, probability: float) -> Tensor:
    """bool [B]."""
    return uniform("flip", 1)[:, 0] < probability


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the chosen images left to right; ``images`` [B, H, W, C], ``chosen`` bool [B]."""
    both = torch.cat([images, images.flip(2)])  # whole rows are picked faster than pixels, as torch.where does
    return both.index_select(0, torch.arange(len(images), device=images.device) + len(images) * chosen)


def draw_crop(uniform: Uniform, scale: Sequence[float], ratio: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Boxes as torchvision's RandomResizedCrop draws them, the whole image where no attempt fits."""
    boxes, found = _draw_boxes(uniform, "crop", scale, ratio, size)
    whole = [torch.full_like(found, n, dtype=torch.int64) for n in (0, 0, *size)]
    return torch.where(found[:, None], boxes, torch.stack(whole, dim=1))


def draw_rotation(uniform: Uniform, degrees: float) -> Tensor:
    """float32 [B] in degrees, counter-clockwise, uniform in [-degrees, degrees)."""
    return (2 * uniform("rotation", 1)[:, 0] - 1) * degrees


def source_maps(boxes: Tensor, degrees: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Where :func:`resample` reads to enlarge each box to the full size and turn it about its centre by ``degrees``.

    float32 [B, 2, 7], for x and for y: the slopes of what is read along output x and y, its value in the centre, the
    edges of the box, and the centres of the outermost pixels in it. Output positions count pixels from the centre of
    the image; what is read is in grid_sample's units, where the whole image reaches from -1 to 1. With y downwards,
    turning counter-clockwise by t reads (x cos t - y sin t, x sin t + y cos t).
    """
    radians = torch.zeros_like(boxes[:, 0], dtype=torch.float32) if degrees is None else torch.deg2rad(degrees)
    sin, cos = torch.sin(radians), torch.cos(radians)
    top, left, height, width = boxes.to(torch.float32).unbind(1)
    maps = []
    for start, extent, length, by_x, by_y in ((left, width, size[1], cos, -sin), (top, height, size[0], sin, cos)):
        centre, reach = (2 * start + extent) / length - 1, extent / length
        slope, low, high = 2 * reach / length, centre - reach, centre + reach
        maps += [slope * by_x, slope * by_y, centre, low, high, low + 1 / length, high - 1 / length]
    return rearrange(maps, "(xy k) b -> b xy k", xy=2)


def resample(images: Tensor, maps: Tensor) -> Tensor:
    """Crop, enlarge and rotate ``images`` [B, C, H, W] by one bilinear reading; ``maps`` of :func:`source_maps`.

    Pixel centres lie at half-integers (``align_corners=False``); a crop is only ever enlarged, so antialiasing has
    nothing to do. Like a crop followed by a resize, the reading never looks across the edge of the box; what the
    rotation brings in from outside is black (before normalisation), as torchvision fills it.
    """
    y, x = (torch.arange(n, dtype=images.dtype, device=images.device) - (n - 1) / 2 for n in images.shape[-2:])
    by_x, by_y, centre, low, high, first, last = rearrange(maps, "b xy k -> k xy b 1 1")
    grid = (by_x * x + centre) + by_y * y[:, None]  # [2, B, H, W]
    beyond = (torch.maximum(grid, low).minimum(high) - grid).abs_()  # 0 inside the box
    grid = torch.maximum(grid, first).minimum(last)
    pixels = F.grid_sample(images, rearrange(grid, "xy b h w -> b h w xy"), mode="bilinear", padding_mode="zeros",
                           align_corners=False)
    return pixels.mul_(1 - (beyond[0] + beyond[1]).sign_()[:, None])


def add_noise(images: Tensor, noise: Tensor) -> Tensor:
    """Add ``noise`` (same shape) to images in [0, 1] and keep them there, as torchvision's GaussianNoise does."""
    return (images + noise).clamp_(0, 1)


def draw_erase(uniform: Uniform, probability: float, scale: Sequence[float], ratio: Sequence[float],
               size: tuple[int, int]) -> Tensor:
    """Boxes as torchvision's RandomErasing draws them, without area where nothing is erased."""
    boxes, found = _draw_boxes(uniform, "erase", scale, ratio, (size[0] - 1, size[1] - 1), size)
    chosen = found & (uniform("erase.chosen", 1)[:, 0] < probability)
    return boxes * chosen[:, None]


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Set each box to zero (the mean colour, after normalisation)."""
    return images * (1 - box_mask(boxes, images.shape[-2:]))


def box_mask(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """float32 [B, 1, H, W]: 1 inside each box, 0 outside; numbers, with which torch is faster than with bool."""
    top, left, height, width = boxes[:, :, None].unbind(1)
    y, x = (torch.arange(n, device=boxes.device) for n in size)
    rows, columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
    return rearrange(rows.float(), "b h -> b 1 h 1") * rearrange(columns.float(), "b w -> b 1 1 w")


def _draw_boxes(uniform: Uniform, purpose: str, scale: Sequence[float], ratio: Sequence[float],
                largest: tuple[int, int], size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Of :data:`ATTEMPTS` boxes per image the first that is not larger than ``largest``, and whether there is one.

    ``scale`` bounds the area as a share of the image of ``size`` (by default ``largest``), ``ratio`` bounds
    width / height, which is uniform in its logarithm.
    """
    size = size or largest
    numbers = uniform(purpose, 2 * ATTEMPTS + 2)
    shares, logs, place = numbers[:, :ATTEMPTS], numbers[:, ATTEMPTS:-2], numbers[:, -2:]
    area = size[0] * size[1] * (scale[0] + (scale[1] - scale[0]) * shares)
    log_ratio = math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * logs
    heights, widths = (area * (-log_ratio).exp()).sqrt().round(), (area * log_ratio.exp()).sqrt().round()
    fits = (heights >= 1) & (heights <= largest[0]) & (widths >= 1) & (widths <= largest[1])
    first = fits.to(torch.int8).argmax(dim=1, keepdim=True)
    extents = [lengths.gather(1, first)[:, 0] for lengths in (heights, widths)]
    corners = [(place[:, axis] * (size[axis] - extent + 1)).floor() for axis, extent in enumerate(extents)]
    return torch.stack(corners + extents, dim=1).to(torch.int64), fits.any(dim=1)
