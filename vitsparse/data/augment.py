"""What a training batch goes through, as one frozen value, and the function that does it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..errors import InputError
from . import transforms as T
from .mixing import draw_mix

Drawn = dict[str, Tensor]
"""Parameters by the step that takes them, each [B, ...]; a step that is off has none."""


@dataclass(frozen=True)
class Augmentation:
    """Every field is off by default, so ``Augmentation()`` changes nothing.

    In this order: horizontal ``flip`` (probability); random resized crop (``crop_scale``: share of the area, or None;
    ``crop_ratio``: width / height); rotation by up to ``rotation_degrees``; Gaussian noise of ``noise_std`` on pixels
    in [0, 1]; normalisation; random erasing with ``erase_prob``; then, for ``mix_prob`` of the images, CutMix with
    lambda from Beta(``cutmix_alpha``, same) or MixUp with ``mixup_alpha``; 0 turns one off, and where both are on,
    ``cutmix_share`` of the mixed images get CutMix. Raises :class:`InputError` for values out of range.
    """

    flip: float = 0.0
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rotation_degrees: float = 0.0
    noise_std: float = 0.0
    erase_prob: float = 0.0
    erase_scale: tuple[float, float] = (0.02, 0.33)
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    cutmix_alpha: float = 0.0
    mixup_alpha: float = 0.0
    mix_prob: float = 1.0
    cutmix_share: float = 0.5

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("flip", "erase_prob", "mix_prob", "cutmix_share"):
                self._require(0 <= value <= 1, field.name, "a probability in [0, 1]")
            elif field.name.endswith("_scale"):
                self._require(value is None or (len(value) == 2 and 0 < value[0] <= value[1] <= 1), field.name,
                              "(low, high) with 0 < low <= high <= 1")
            elif field.name.endswith("_ratio"):
                self._require(len(value) == 2 and 0 < value[0] <= value[1], field.name,
                              "(low, high) with 0 < low <= high")
            else:
                self._require(0 <= value < float("inf"), field.name, "a number that is not negative")

    def _require(self, fine: bool, name: str, expected: str) -> None:
        if not fine:
            raise InputError("an augmentation is out of range", where=name, expected=expected,
                             found=getattr(self, name))

    @property
    def mixes(self) -> bool:
        """Whether CutMix or MixUp is on."""
        return bool(self.cutmix_alpha or self.mixup_alpha)

    def draw(self, uniform: T.Uniform, size: tuple[int, int]) -> Drawn:
        """Parameters of all but the noise for images of ``size``: ``flip``, ``maps``, ``erase``, ``share``, ``cut``."""
        drawn = {}
        if self.flip:
            drawn["flip"] = T.draw_flip(uniform, self.flip)
        if self.crop_scale or self.rotation_degrees:
            boxes = T.draw_crop(uniform, self.crop_scale or (1.0, 1.0), self.crop_ratio if self.crop_scale
                                else (1.0, 1.0), size)
            degrees = T.draw_rotation(uniform, self.rotation_degrees) if self.rotation_degrees else None
            drawn["maps"] = T.source_maps(boxes, degrees, size)
        if self.erase_prob:
            drawn["erase"] = T.draw_erase(uniform, self.erase_prob, self.erase_scale, self.erase_ratio, size)
        if self.mixes:
            mix = draw_mix(uniform, (self.cutmix_alpha, self.mixup_alpha), self.mix_prob, self.cutmix_share, size)
            drawn |= {"share": mix.share, "cut": mix.boxes}
        return drawn


def augment(images: Tensor, drawn: Drawn, noise: Tensor | None,
            statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """uint8 [B, H, W, C] to augmented, normalised float32 [B, C, H, W]; mixing is a later step.

    ``noise`` float32 [B, C * H * W] is for pixels in [0, 1]; ``statistics`` are mean and std per channel.
    """
    if "flip" in drawn:
        images = T.flip(images, drawn["flip"])
    pixels = T.to_float(images)
    if "maps" in drawn:
        pixels = T.resample(pixels, drawn["maps"])
    if noise is not None:
        pixels = T.add_noise(pixels, noise.view(pixels.shape))
    pixels = T.normalize(pixels, *statistics)
    return T.erase(pixels, drawn["erase"]) if "erase" in drawn else pixels


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """float32 [B, K] targets of int64 [B] labels."""
    return torch.nn.functional.one_hot(labels, num_classes).to(torch.float32)
