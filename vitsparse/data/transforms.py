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
    return rearrange(images, "b h w c -> b c h w").contiguous().to(torch.float32).div_(255)


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
    """Enlarge each box to the full image, then turn it about its centre, in one bilinear reading.

    Pixel centres lie at half-integers (``align_corners=False``). A crop is only ever enlarged, so antialiasing has
    nothing to do. Like a crop followed by a resize, the reading never looks across the edge of the box; what the
    rotation brings in from outside the box is black (before normalisation), as torchvision fills it.
    """
    height, width = images.shape[-2:]
    radians = torch.zeros(len(boxes)) if degrees is None else torch.deg2rad(degrees)
    sin, cos = torch.sin(radians), torch.cos(radians)
    top, left, box_height, box_width = boxes.to(torch.float32).unbind(1)
    grid = images.new_empty(len(images), height, width, 2)
    # Where output pixel (x, y), counted from the centre, comes from: (x cos - y sin, x sin + y cos), in box widths.
    for axis, (weights, start, extent, size) in enumerate((
            ((cos / width, -sin / width), left, box_width, width),
            ((sin / height, cos / height), top, box_height, height))):
        scale = 2 * extent / size
        centre = (2 * start + extent) / size - 1
        shares = ((weight * scale).to(images.device) for weight in weights)
        x, y = (share[:, None] * _centred(n, images) for share, n in zip(shares, (width, height), strict=True))
        low, high = ((centre + sign * scale / 2).to(images.device)[:, None, None] for sign in (-1, 1))
        coordinate = (x + centre.to(images.device)[:, None])[:, None, :] + y[:, :, None]
        inside = None if degrees is None else (coordinate >= low) & (coordinate <= high)
        coordinate = coordinate.clamp_(low + 1 / size, high - 1 / size)
        grid[..., axis] = coordinate if inside is None else coordinate.masked_fill_(~inside, BEYOND)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


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


def _centred(n: int, like: Tensor) -> Tensor:
    """Pixel centres counted from the middle of a line of n pixels."""
    return torch.arange(n, dtype=like.dtype, device=like.device) - (n - 1) / 2
