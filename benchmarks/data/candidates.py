"""Who augments the same images: our stream, and torchvision.transforms.v2 as it is used in a data set, in three forms.

Each candidate is a function without arguments that turns all images, which lie decoded in memory, into batches for
training: normalised float32 images, soft targets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vitsparse.cli.presets import PRESETS
from vitsparse.data import Augmentation, ImageSet, TrainStream

BATCH = 128
AUGMENTATION = Augmentation(**PRESETS["tiny-imagenet"]["augment"])
Pass = Callable[[], list[tuple[Tensor, Tensor]]]


def candidates(images: ImageSet, batch: int = BATCH) -> Mapping[str, Pass]:
    """By name. ``v2 ...`` are called sample by sample; ``batched v2`` draws once for all of a batch, which is less."""
    planes = torch.from_numpy(images.images.transpose(0, 3, 1, 2).copy())
    pictures = [Image.fromarray(pixels) for pixels in images.images]
    geometry, floats, rest = v2_steps(images)
    compose, from_picture = _v2().Compose, [_v2().PILToTensor(), torch.Tensor.contiguous]
    forms = {
        "v2 bytes": (planes, one_by_one(compose([*geometry, floats, *rest]))),
        "v2 floats": (planes, one_by_one(compose([floats, *geometry, *rest]))),
        "v2 PIL": (pictures, one_by_one(compose([*geometry, *from_picture, floats, *rest]))),
        "batched v2": (planes, compose([*geometry, floats, *rest])),
    }
    return {"ours": our_pass(images, batch)} | {name: v2_pass(samples, transform, images, batch)
                                                for name, (samples, transform) in forms.items()}


def our_pass(images: ImageSet, batch: int) -> Pass:
    """One epoch of the training stream: order, gathering and drawing included."""
    stream = TrainStream(images, batch, seed=0, num_classes=len(images.classes), augmentation=AUGMENTATION,
                         drop_last=False)
    epochs = itertools.count()
    return lambda: list(stream.epoch(next(epochs)))


def one_by_one(transform: Callable[[Any], Tensor]) -> Callable[[Iterable[Any]], Tensor]:
    return lambda samples: torch.stack([transform(sample) for sample in samples])


def v2_pass(samples: Sequence[Any], transform: Callable[[Any], Tensor], images: ImageSet, batch: int) -> Pass:
    """``transform`` of so many samples at a time, then CutMix or MixUp of the batch, as v2 offers them."""
    v2, a, count = _v2(), AUGMENTATION, len(images.classes)
    choice = v2.RandomChoice([v2.CutMix(alpha=a.cutmix_alpha, num_classes=count),
                              v2.MixUp(alpha=a.mixup_alpha, num_classes=count)], p=[a.cutmix_share, 1 - a.cutmix_share])
    parts = [(samples[start:start + batch], torch.from_numpy(images.labels[start:start + batch]))
             for start in range(0, len(images), batch)]
    return lambda: [choice(transform(part), labels) for part, labels in parts]


def v2_steps(images: ImageSet) -> tuple[list[Any], Any, list[Any]]:
    """The same augmentations in v2: those that keep the type of a pixel, its conversion, and those on floats."""
    v2, a, size = _v2(), AUGMENTATION, images.images.shape[1:3]
    geometry = [v2.RandomHorizontalFlip(a.flip), v2.RandomResizedCrop(size, a.crop_scale, a.crop_ratio),
                v2.RandomRotation(a.rotation_degrees, v2.InterpolationMode.BILINEAR)]
    rest = [v2.GaussianNoise(0.0, a.noise_std), v2.Normalize(images.mean, images.std, inplace=True),
            v2.RandomErasing(a.erase_prob, a.erase_scale, a.erase_ratio, inplace=True)]
    return geometry, v2.ToDtype(torch.float32, scale=True), rest


def _v2() -> Any:
    from torchvision.transforms import v2

    return v2
