"""Tiny ImageNet (Stanford CS231n): 200 classes of 64x64 colour images, 500 to train and 50 to validate each.

Decoded once into a memory map in the cache (1.2 GB for all training images), see :mod:`vitsparse.data.decoded`.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np

from ..circuit.files import default_cache, existing
from ..errors import InputError, MissingFile, nearest
from .archives import Folder, OfficialLayout, Source, Zip
from .decoded import decoded
from .image_set import ImageSet, check_class_count
from .parquet import ParquetShards

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
FIRST_TEST_NUMBER = 420  # of the 500 training images of a class, in the split "seed"
SPLITS = ("standard", "seed")


def load(split: str, root: str | os.PathLike | None, *, num_classes: int | None = None, splits: str = "standard",
         strict: bool = False, cache: str | os.PathLike | None = None) -> ImageSet:
    """One split ("train", "val", "test") of the images at ``root``, ordered by image number, then class.

    ``root`` is the official zip (read in place), the unpacked folder, or a folder of parquet shards. Labels sort by
    wnid; ``num_classes`` takes the first so many. ``splits="standard"``: train is all training images; val and test
    are both the official validation images, because the official test has no labels. ``"seed"``: the split of the
    project this one grew from: training images 0-419 of each class are train, 420-499 test, val as before.

    Images that cannot be decoded are left out, with a warning that names them; with ``strict`` they raise
    :class:`InputError`, as an image of another size or a label outside the classes always does. ``cache`` is the folder
    for decoded images (default: ``vitsparse`` in the user's cache).
    """
    if splits not in SPLITS:
        raise InputError("the way to split is not known", where="splits", expected=", ".join(SPLITS), found=splits,
                         remedy=nearest(splits, SPLITS))
    source = open_source(root)
    num_classes = len(source.classes) if num_classes is None else num_classes
    check_class_count(num_classes, len(source.classes))
    part = "train" if split == "train" or (splits, split) == ("seed", "test") else "val"
    found = decoded(source, part, num_classes, default_cache() if cache is None else Path(cache))
    if found.skipped:
        _report(found.skipped, source.path, strict)
    rows = slice(None)
    if splits == "seed" and part == "train":
        cut = int(np.searchsorted(found.numbers, FIRST_TEST_NUMBER))
        rows = slice(cut) if split == "train" else slice(cut, None)
    names = tuple(name for _, name in source.classes[:num_classes])
    return ImageSet(found.images[rows], found.labels[rows], names, MEAN, STD, "tiny_imagenet", split)


def open_source(root: str | os.PathLike | None) -> Source:
    """The source at ``root``: the zip, the unpacked folder, the folder of shards, or the folder around one of them."""
    expected = "tiny-imagenet-200.zip, the unpacked folder tiny-imagenet-200, or parquet shards train-*.parquet"
    if root is None:
        raise MissingFile("tiny_imagenet needs to know where its images are", where="root", expected=expected,
                          remedy="give root=PATH; on the command line --data PATH")
    root = existing(root)
    if root.is_file():
        return OfficialLayout(Zip(root))
    if any(root.glob("*.parquet")):
        return ParquetShards(root)
    for folder in (root, root / "tiny-imagenet-200"):
        if (folder / "wnids.txt").is_file():
            return OfficialLayout(Folder(folder))
    if (root / "tiny-imagenet-200.zip").is_file():
        return OfficialLayout(Zip(root / "tiny-imagenet-200.zip"))
    raise MissingFile("the folder does not hold Tiny ImageNet", where=root, expected=expected,
                      found=", ".join(sorted(os.listdir(root))[:5]) or "an empty folder")


def _report(skipped: tuple[str, ...], path: Path, strict: bool) -> None:
    names = ", ".join(skipped[:10]) + (f" and {len(skipped) - 10} more" if len(skipped) > 10 else "")
    if strict:
        raise InputError(f"{len(skipped)} images cannot be decoded", where=path, found=names,
                         remedy="fetch the data anew, or leave them out without strict")
    warnings.warn(f"{path}: {len(skipped)} images cannot be decoded and are left out: {names}", stacklevel=4)
