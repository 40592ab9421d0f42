"""Augmentations for a whole batch on its device, with parameters of their own for every image.

Each comes in two halves: ``draw_*`` turns uniform numbers into parameters, on the CPU, a few numbers per image; the
other half applies given parameters, and is a pure function that agrees with ``torchvision.transforms.v2.functional``.
``uniform(purpose, n)`` is :func:`vitsparse.data.draws.uniform` with everything but its last two arguments filled in.

Boxes are int64 [B, 4]: top, left, height, width, in pixels. A box without area means "none".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Uniform = Callable[[str, int], Tensor]

ATTEMPTS = 10  # as in torchvision: so many boxes are tried until one fits into the image
BEYOND = 4.0  # a coordinate well outside [-1, 1], where grid_sample reads zeros


def to_float(images: Tensor) -> Tensor:
    """uint8 [B, H, W, C] to float32 [B, C, H, W] in [0, 1]."""
    return rearrange(images, "b h w c -> b c h w").contiguous().to(torch.float32).mul_(1 / 255)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std per channel; ``images`` [B, C, H, W]."""
    mean, std = (rearrange(images.new_tensor(values), "c -> c 1 1") for values in (mean, std))
    return (images - mean).div_(std)


def draw_flip(uniform: Uniform, probability: float) -> Tensor:
    """bool [B]."""
    return uniform("flip", 1)[:, 0] < probability


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the chosen images left to right; ``images`` [B, C, H, W], ``chosen`` bool [B]."""
    flipped = images.clone()
    flipped[chosen] = images[chosen].flip(-1)
    return flipped


def draw_crop(uniform: Uniform, scale: Sequence[float], ratio: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Boxes as torchvision's RandomResizedCrop draws them, the whole image where no attempt fits."""
    boxes, found = _draw_boxes(uniform, "crop", scale, ratio, size)
    return torch.where(found[:, None], boxes, torch.tensor([0, 0, *size]))


def draw_rotation(uniform: Uniform, degrees: float) -> Tensor:
    """float32 [B] in degrees, counter-clockwise, uniform in [-degrees, degrees)."""
    return (2 * uniform("rotation", 1)[:, 0] - 1) * degrees


def crop_and_rotate(images: Tensor, boxes: Tensor, degrees: Tensor | None = None) -> Tensor:
    """Enlarge each box of ``images`` [B, C, H, W] to the full size, then turn it about its centre by ``degrees`` [B].

    One bilinear reading does both. Pixel centres lie at half-integers (``align_corners=False``); a crop is only ever
    enlarged, so antialiasing has nothing to do. Like a crop followed by a resize, the reading never looks across the
    edge of the box; what the rotation brings in from outside is black (before normalisation), as torchvision fills it.
    """
    size = images.shape[-2:]
    y, x = (torch.arange(n, dtype=images.dtype, device=images.device) - (n - 1) / 2 for n in size)
    grid = images.new_empty(len(images), *size, 2)
    maps = _source_maps(boxes, degrees, size).to(images.device)
    for axis, (by_x, by_y, centre, reach) in enumerate(maps[..., None]):
        coordinate = (by_x * x + centre)[:, None, :] + (by_y * y)[:, :, None]
        low, high, half_pixel = (centre - reach)[..., None], (centre + reach)[..., None], 1 / size[1 - axis]
        outside = None if degrees is None else (coordinate < low) | (coordinate > high)
        coordinate = coordinate.clamp_(low + half_pixel, high - half_pixel)
        grid[..., axis] = coordinate if outside is None else coordinate.masked_fill_(outside, BEYOND)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _source_maps(boxes: Tensor, degrees: Tensor | None, size: Sequence[int]) -> Tensor:
    """float32 [2, 4, B]: for the x and the y read, its slopes along output x and y, the box's centre and half width.

    Output positions count pixels from the centre of the image; what is read is in grid_sample's units, where the whole
    image reaches from -1 to 1. With y downwards, turning counter-clockwise by t reads (x cos t - y sin t,
    x sin t + y cos t).
    """
    radians = torch.zeros(len(boxes)) if degrees is None else torch.deg2rad(degrees)
    sin, cos = torch.sin(radians), torch.cos(radians)
    sizes = torch.tensor(size, dtype=torch.float32).flip(0)[:, None]
    start, extent = (boxes[:, columns].T.to(torch.float32) for columns in ([1, 0], [3, 2]))
    centre, reach = (2 * start + extent) / sizes - 1, extent / sizes
    slope = 2 * reach / sizes
    return torch.stack([slope * torch.stack([cos, sin]), slope * torch.stack([-sin, cos]), centre, reach], dim=1)


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
    return images.masked_fill(box_mask(boxes.to(images.device), images.shape[-2:]), 0.0)


def box_mask(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """bool [B, 1, H, W]: True inside each box."""
    top, left, height, width = boxes[:, :, None].unbind(1)
    y, x = (torch.arange(n, device=boxes.device) for n in size)
    rows = (y >= top) & (y < top + height)
    columns = (x >= left) & (x < left + width)
    return rearrange(rows, "b h -> b 1 h 1") & rearrange(columns, "b w -> b 1 1 w")


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
    extents = torch.stack([(area * (-log_ratio).exp()).sqrt().round(), (area * log_ratio.exp()).sqrt().round()], dim=2)
    fits = ((extents >= 1) & (extents <= torch.tensor(largest))).all(dim=2)
    first = fits.to(torch.int8).argmax(dim=1)
    extent = extents[torch.arange(len(first)), first]
    corner = (place * (torch.tensor(size) - extent + 1)).floor()
    return torch.cat([corner, extent], dim=1).to(torch.int64), fits.any(dim=1)
