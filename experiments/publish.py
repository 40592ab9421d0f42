"""Put a trained model into ``weights/`` and into the package's index, with a card made from its result file.

    python -m experiments.publish FOLDER --name ARCHITECTURE.TAG --result experiments/results/small/CELL.json
                                  [--latency CELL.latency.json] [--data PATH]

FOLDER is what ``save_pretrained`` wrote, dense or sparse. Nothing is measured anew; with ``--data`` the float16 model
must answer the test images as the result file says.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitsparse import InputError, SparseViT, ViT
from vitsparse.circuit.files import write_text
from vitsparse.evaluation.intervals import right_answers
from vitsparse.model.config import ViTConfig
from vitsparse.model.pretrained import INDEX_FILE, Pretrained, Stamp, read_index, write_index
from vitsparse.model.registry import open_folder, parse
from vitsparse.model.weights import save_pretrained

from .journal import load_result
from .judge import answers, size_of
from .lab import Lab
from .model_card import Card, describe, index_page
from .sizes import SIZES

MAX_BYTES = 40 * 10**6  # of all weights together: they lie in the repository
MAX_CHANGED = 0.005  # share of the images: rounding to float16 may turn an answer only where two logits nearly tie
WEIGHTS = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class Shelf:
    """Where models are published: the folder of weights and the index that pins its files."""

    weights: Path = WEIGHTS
    index: Path = INDEX_FILE

    def put(self, staged: Path, card: Card) -> None:
        """Move a finished folder in, then pin it, then rewrite the page; refuses what makes the whole too large."""
        models = read_index(self.index) | {card.name: card.entry}
        total = sum(entry.bytes for entry in models.values())
        if total >= MAX_BYTES:
            raise InputError("all weights together would be too large", where=self.weights, found=f"{total:,} bytes",
                             expected=f"less than {MAX_BYTES:,} bytes", remedy="take another model out first")
        write_text(staged / "README.md", card.text())
        place = self.weights / card.name
        shutil.rmtree(place, ignore_errors=True)
        os.rename(staged, place)
        write_index(models, self.index)
        write_text(self.weights / "README.md", index_page(models))


def publish(folder: Path, name: str, result_file: Path, *, latency_file: Path | None = None, data: Path | None = None,
            shelf: Shelf = Shelf()) -> Card:
    """Publish the model in ``folder``; :class:`InputError` unless name, model, result and latency belong together."""
    result = load_result(result_file)
    latency = None if latency_file is None else load_result(latency_file)
    if latency is not None and any(latency.get(key) != result[key] for key in ("cell", "size")):
        raise InputError("the latency is of another cell", where=latency_file, found=latency.get("cell"),
                         expected=result["cell"])
    model = open_folder(folder)
    model_args = _beyond(name, model.config)
    _check_result(model, result, result_file)
    shelf.weights.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=shelf.weights, prefix=".publish-") as temporary:
        staged = Path(temporary) / name
        save = model.save_pretrained if isinstance(model, SparseViT) else partial(save_pretrained, model)
        save(staged, dtype=torch.float16)
        changed = None if data is None else _changed(open_folder(staged), result, data)
        kind, classes = ("vit" if isinstance(model, ViT) else "sparse_vit"), model.config.num_classes
        files = {path.name: Stamp.of(path) for path in sorted(staged.iterdir())}
        entry = Pretrained(kind, classes, describe(kind, result, classes), model_args, files)
        card = Card(name, entry, model.config, result, latency, changed)
        shelf.put(staged, card)
    return card


def _beyond(name: str, config: ViTConfig) -> dict[str, Any]:
    """What ``config`` has beyond its name and number of classes; raises where the name says something else."""
    if not re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_]+", name):
        raise InputError("the name is not of the right form", where="--name", expected="ARCHITECTURE.TAG", found=name)
    have = config.to_dict()
    said = parse(name.partition(".")[0], have)
    default = {**ViTConfig().to_dict(), **said}
    beyond = {key: value for key, value in have.items() if value != default[key] and key != "num_classes"}
    if wrong := [key for key in beyond if key in said]:
        raise InputError("the name is of another architecture", where=f"--name {name}",
                         expected=", ".join(f"{key}={have[key]}" for key in wrong),
                         found=", ".join(f"{key}={said[key]}" for key in wrong))
    return beyond


def _check_result(model: ViT | SparseViT, result: Mapping[str, Any], file: Path) -> None:
    """Refuse a result that cannot be this model's."""
    row, size = result["row"], SIZES[result["size"]]
    found = {**size_of(model, ViTConfig.from_dict(parse(size.model))), "classes": model.config.num_classes}
    expected = {**{key: row[key] for key in found if key != "classes"}, "classes": size.classes}
    del found["S"], expected["S"]  # follows from the FLOPs
    if wrong := [key for key in found if found[key] != expected[key]]:
        raise InputError("the result is of another model", where=file,
                         expected=", ".join(f"{key}={expected[key]}" for key in wrong),
                         found=", ".join(f"{key}={found[key]}" for key in wrong))


def _changed(model: ViT | SparseViT, result: Mapping[str, Any], data: Path) -> int:
    """How many test images ``model`` gets right where the result says wrong, or the other way round."""
    said = answers(result["row"])
    found = right_answers(model, Lab(SIZES[result["size"]], data, out=WEIGHTS, device="cpu").batches("test"))
    if len(found) != len(said):
        raise InputError("the result was measured on other images", where=data, expected=f"{len(said)} images",
                         found=len(found))
    changed = int((found != said).sum())
    if changed > MAX_CHANGED * len(said):
        raise InputError("the float16 model does not answer as the result says", where=data,
                         expected=f"{said.mean():.2%}, at most {MAX_CHANGED:.1%} of the answers changed",
                         found=f"{found.mean():.2%}, {changed} of {len(said)} answers changed",
                         remedy="give the folder of the same cell as the result")
    return changed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.publish", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a model, as save_pretrained wrote it")
    parser.add_argument("--name", required=True, help="ARCHITECTURE.TAG")
    parser.add_argument("--result", type=Path, required=True, help="the result file of its cell")
    parser.add_argument("--latency", type=Path, help="the latency file of its cell")
    parser.add_argument("--data", type=Path, help="Tiny ImageNet: check that float16 answers as the result says")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="default: %(default)s")
    parser.add_argument("--index", type=Path, default=INDEX_FILE, help="default: %(default)s")
    given = parser.parse_args(arguments)
    try:
        card = publish(given.folder, given.name, given.result, latency_file=given.latency, data=given.data,
                       shelf=Shelf(given.weights, given.index))
    except InputError as error:
        parser.exit(2, f"{error}\n")
    changed = "" if card.changed is None else f", {card.changed} answers changed by float16"
    print(f"{card.name}: {card.entry.bytes:,} bytes{changed}\n{card.entry.description}")


if __name__ == "__main__":
    main()
