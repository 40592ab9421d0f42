"""What a training batch goes through, as one frozen value, and the function that does it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..errors import InputError
from . import transforms as T
from .mixing import Mix, draw_mix


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

    def draw_mix(self, uniform: T.Uniform, size: tuple[int, int]) -> Mix:
        """Parameters of CutMix and MixUp for the batch."""
        return draw_mix(uniform, (self.cutmix_alpha, self.mixup_alpha), self.mix_prob, self.cutmix_share, size)


def augment(images: Tensor, augmentation: Augmentation, uniform: T.Uniform, normal: T.Uniform,
            statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """uint8 [B, H, W, C] to augmented, normalised float32 [B, C, H, W] on the same device; mixing is a later step.

    ``uniform`` gives parameters on the CPU, ``normal`` pixel noise on the device of ``images``, both [B, n];
    ``statistics`` are mean and std per channel.
    """
    a, size = augmentation, tuple(images.shape[1:3])
    pixels = T.to_float(images)
    if a.flip:
        pixels = T.flip(pixels, T.draw_flip(uniform, a.flip).to(images.device))
    if a.crop_scale or a.rotation_degrees:
        boxes = T.draw_crop(uniform, a.crop_scale or (1.0, 1.0), a.crop_ratio if a.crop_scale else (1.0, 1.0), size)
        degrees = T.draw_rotation(uniform, a.rotation_degrees) if a.rotation_degrees else None
        pixels = T.crop_and_rotate(pixels, boxes, degrees)
    if a.noise_std:
        pixels = T.add_noise(pixels, normal("noise", pixels[0].numel()).view(pixels.shape).mul_(a.noise_std))
    pixels = T.normalize(pixels, *statistics)
    if a.erase_prob:
        pixels = T.erase(pixels, T.draw_erase(uniform, a.erase_prob, a.erase_scale, a.erase_ratio, size))
    return pixels


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """float32 [B, K] targets of int64 [B] labels."""
    return torch.nn.functional.one_hot(labels, num_classes).to(torch.float32)
