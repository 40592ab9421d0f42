"""Images: data sets as frozen values, batches for measuring, augmented streams for training."""

from __future__ import annotations

import os

from ..errors import InputError, nearest
from . import digits, tiny_imagenet
from .augment import Augmentation
from .batches import Batches, TrainStream
from .image_set import ImageSet

__all__ = ["DATA_SETS", "SPLITS", "Augmentation", "Batches", "ImageSet", "TrainStream", "load"]

DATA_SETS = ("digits", "tiny_imagenet")
SPLITS = ("train", "val", "test")


def load(name: str, split: str, *, root: str | os.PathLike | None = None, num_classes: int | None = None,
         splits: str = "standard", strict: bool = False, cache: str | os.PathLike | None = None) -> ImageSet:
    """One split ("train", "val" or "test") of the data set ``name``, with its first ``num_classes`` classes or all.

    "digits" is embedded and refuses a ``root``; ``splits``, ``strict`` and ``cache`` only concern "tiny_imagenet",
    whose :func:`vitsparse.data.tiny_imagenet.load` explains them. Raises :class:`InputError` for unknown names and bad
    files.
    """
    for field, value, known in (("data set", name, DATA_SETS), ("split", split, SPLITS)):
        if value not in known:
            raise InputError(f"the {field} is not known", where=field, expected=", ".join(known), found=value,
                             remedy=nearest(value, known))
    if name == "digits":
        if root is not None:  # whoever names a folder wants its images, and would not notice getting others
            raise InputError("the digits are embedded and read from no folder", where="root", found=root,
                             remedy="leave it out, or choose another data set (or preset: tiny-imagenet-small)")
        image_set = digits.load(split)
        return image_set if num_classes is None else image_set.take_classes(num_classes)
    return tiny_imagenet.load(split, root, num_classes=num_classes, splits=splits, strict=strict, cache=cache)
