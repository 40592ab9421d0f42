"""``vitsparse data``: read a data set, decode it into the cache, and say what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..circuit.files import write_json
from ..data import SPLITS, ImageSet
from .config import DataConfig
from .flags import Common, parse
from .shared import begin, load_images


@dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Read a data set, decode it into the cache, and write what is in it to ``data.json``."""

    data: DataConfig


def main(argv: Sequence[str]) -> int:
    """Write ``data.json`` and print it as a table."""
    _, config = parse(Flags, argv)
    folder = begin(config, "data", splits=SPLITS)
    summary = {split: summarise(load_images(config, split)) for split in SPLITS}
    write_json(folder / "data.json", {"name": config.data.name, **summary})
    print(f"{config.data.name}\n{'split':8}{'images':>8}{'classes':>9}{'size':>10}   images a class")
    for split, facts in summary.items():
        low, high = facts["images_per_class"]
        print(f"{split:8}{facts['images']:8,}{facts['classes']:9}{facts['size']:>10}   {low} to {high}")
    return 0


def summarise(images: ImageSet) -> dict[str, Any]:
    """Counts and sizes of a split, as plain values."""
    per_class = np.bincount(images.labels, minlength=len(images.classes))
    return {"images": len(images), "classes": len(images.classes), "size": "x".join(map(str, images.images.shape[1:])),
            "images_per_class": [int(per_class.min()), int(per_class.max())], "class_names": list(images.classes),
            "mean": list(images.mean), "std": list(images.std)}
