"""Images a second of the batched augmentation on one core, against torchvision's: python -m benchmarks.data

The augmentations are those of the preset tiny-imagenet, all of them. Everybody has one thread and takes turns; a call
is one pass over the same decoded images. Rows are kept as JSON in benchmarks/results.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data.candidates import AUGMENTATION, BATCH, candidates
from benchmarks.model.results import FOLDER, facts_of, line, slug, store
from benchmarks.model.targets import Row, compare
from vitsparse import data
from vitsparse.data import ImageSet
from vitsparse.evaluation.latency import Latency, measure_rounds

IMAGES, ROUNDS = 1024, 15
ROWS = (Row("ours vs v2 sample by sample", "ours", "v2", {BATCH: (3.0, None)}),
        Row("ours vs batched v2", "ours", "batched v2", {}))


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the rows, and keep them; see the module's head."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="PATH", help="folder of Tiny ImageNet; without it, random pixels")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"calls of each (default: {ROUNDS})")
    parser.add_argument("--out", type=Path, help="JSON file to write, instead of one in benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="few images, nothing kept unless --out says where: does "
                                                             "it run, not how fast it is")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    facts = {**facts_of(1), "images": "random" if given.data is None else "tiny_imagenet",
             "augmentation": str(AUGMENTATION)}
    print("  ".join(f"{fact} {value}" for fact, value in facts.items()), flush=True)
    images = images_of(given.data, BATCH if given.quick else IMAGES)
    found = list(rows(images, 2 if given.quick else given.rounds))
    for row in found:
        print(f"  {said(row)}")
    file = given.out or FOLDER / f"data-{slug(facts['cpu'])}-{facts['cores']}-cores.json"
    if given.out is not None or not given.quick:
        store(file, "augmentation", {"machine": facts, "rows": found})
        print(f"rows: {file}")


def images_of(root: Path | None, count: int) -> ImageSet:
    """The first images of the training set under ``root``, or random ones of the same kind."""
    if root is not None:
        return data.load("tiny_imagenet", "train", root=root, num_classes=20).subset(slice(count))
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count, dtype=np.int64) % 200, tuple(map(str, range(200))), (0.48, 0.45, 0.4),
                    (0.28, 0.27, 0.28), "random", "train")


def rows(images: ImageSet, rounds: int) -> Iterator[dict[str, Any]]:
    """Images a second of each candidate, then the ratios within a round against the fastest that v2 has."""
    times = measure_rounds(candidates(images), warmup=1, repeats=rounds, min_seconds=0)
    for name, milliseconds in times.items():
        rate = Latency.of(1e3 * len(images) / milliseconds)
        yield {"name": name, "kind": "rate", "batch": BATCH, "images_per_second": round(rate.p50, 1),
               "p20": round(rate.p20, 1), "p80": round(rate.p80, 1), "n": rate.n, "threads": 1}
    yield from compare(ROWS, BATCH, times)


def said(row: dict[str, Any]) -> str:
    """A row as a line of print."""
    if row["kind"] != "rate":
        return line(row)
    return (f"{row['name']:34} batch {row['batch']}  {row['images_per_second']:9.0f} images/s a core  "
            f"[{row['p20']:.0f}, {row['p80']:.0f}]")


if __name__ == "__main__":
    main()
