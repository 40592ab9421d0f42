"""Where cells work: the images, the models that earlier cells left, training, judging and timing."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitsparse import Ablation, Graph, InputError, SparseViT, ViT, create_model, data
from vitsparse.circuit.files import read_json
from vitsparse.compiler.cost import CostModel, PlanCost
from vitsparse.data import Batches, ImageSet, TrainStream
from vitsparse.model.weights import load_pretrained, save_pretrained
from vitsparse.training import Recipe, fit

from . import judge, narrow, timing
from .sizes import COST_TABLE, Size

JUDGED_AT_ONCE = 128  # images, as in the seed's loop


@dataclass(frozen=True)
class Made:
    """What a cell found out: ``settings`` that decided it, the ``row`` of its model, ``before`` fine-tuning and the
    course of its ``training`` (None where there was none)."""

    settings: Mapping[str, Any]
    row: Mapping[str, Any]
    before: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Lab:
    """``root``: the images (None: noise, for rehearsals); ``out``: a folder for each cell; ``device``: what runs it."""

    size: Size
    root: Path | None
    out: Path
    device: str
    only: tuple[int, ...] = ()
    """the images of these classes alone, numbered anew"""
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def among(self, classes: tuple[int, ...]) -> Lab:
        """The lab of a task of these classes alone."""
        return dataclasses.replace(self, size=dataclasses.replace(self.size, classes=len(classes)), only=classes,
                                   _kept={})

    def images(self, split: str) -> ImageSet:
        """A split of the seed project: of each class 420 images to train, 80 to test, the official 50 to validate."""
        if split not in self._kept:
            self._kept[split] = self._load(split)
        return self._kept[split]

    def _load(self, split: str) -> ImageSet:
        size = self.size
        if self.root is None:
            return _noise(size, split)
        count = max(self.only) + 1 if self.only else size.classes
        images = data.load("tiny_imagenet", split, root=self.root, num_classes=count, splits="seed")
        if self.only:
            images = _renumbered(images, self.only)
        return images if size.take is None else images.subset(slice(size.take))

    def batches(self, split: str, limit: int | None = None, batch_size: int = JUDGED_AT_ONCE) -> Batches:
        """Batches for measuring, in the order of the data set."""
        return Batches(self.images(split), batch_size, device=self.device, limit=limit)

    def require(self, cell: str) -> Path:
        """The folder of a cell that another one starts from; :class:`InputError` where its model is gone."""
        folder = self.out / cell
        if not (folder / "model.safetensors").exists():
            raise InputError("the model of an earlier cell is not there", where=folder, expected="model.safetensors",
                             remedy=f"--again {cell} makes it anew, or give the --out of its run")
        return folder

    def dense(self, cell: str) -> ViT:
        """The dense model that a cell left."""
        return load_pretrained(self.require(cell), device=self.device)

    def model(self, folder: Path) -> ViT | SparseViT:
        """The model in a folder, whichever kind it is; a sparse one runs on the device's own backend."""
        architecture = read_json(folder / "config.json").get("architecture")
        if architecture == "vit":
            return load_pretrained(folder, device=self.device)
        if architecture == narrow.ARCHITECTURE:
            return narrow.load_narrow(folder, device=self.device)
        return SparseViT.from_pretrained(folder, backend="auto", device=self.device)

    def new_model(self, **changes: int) -> ViT:
        """A dense model of this size with fresh weights."""
        torch.manual_seed(0)
        return create_model(self.size.model, num_classes=self.size.classes, **changes).to(self.device)

    def graph(self, model: ViT) -> Graph:
        """Heads and groups of hidden units: what the searches by latency cut."""
        return Graph.of(model, mlp_groups=self.size.search.mlp_groups)

    def search_batches(self, limit: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Training images without augmentation. The first ones are class-balanced."""
        return list(self.batches("train", limit, self.size.search.batch_size))

    def mean_ablation(self, model: ViT, graph: Graph) -> Ablation:
        return Ablation.mean(model, self.batches("train", self.size.search.ablation_images), graph=graph)

    def cost(self, model: ViT) -> PlanCost:
        """Predicted latencies at batch 1, by the table that all machines share."""
        return PlanCost(CostModel.load(COST_TABLE), model.config)

    def train(self, model: nn.Module, recipe: Recipe, folder: Path, *, teacher: nn.Module | None = None,
              seed: int = 0) -> dict[str, Any]:
        """Train in place, going on from a checkpoint if there is one; returns the course of it.

        The last epoch's weights count: validation images choose nothing.
        """
        recipe, images = dataclasses.replace(recipe, seed=seed), self.images("train")
        stream = TrainStream(images, recipe.batch_size, seed=seed, num_classes=len(images.classes), device=self.device,
                             augmentation=self.size.augmentation(dataclasses.replace(recipe, seed=0)))
        start = time.perf_counter()
        history = fit(model, stream, recipe, out=folder, val_batches=self.batches("val"), teacher=teacher, resume=True)
        rows = history.epochs
        return {"epochs": len(rows), "seconds": round(sum(row.seconds for row in rows), 1),
                "seconds_with_validation": round(time.perf_counter() - start, 1),
                "images_per_second": round(len(rows) * stream.steps_per_epoch * recipe.batch_size
                                           / sum(row.seconds for row in rows), 1),
                "train_loss": [round(row.train_loss, 4) for row in rows],
                "val_accuracy": [round(row.val_accuracy, 4) for row in rows]}

    def judge(self, model: ViT | SparseViT, reference: ViT | None = None) -> dict[str, Any]:
        """The row of a model on the test images; ``reference``: the dense model that KL is measured from."""
        return judge.row(model, self.batches("test"), reference, self.new_model().config)

    def time(self, folder: Path) -> dict[str, Any]:
        """Latency of the model in ``folder`` beside the dense model of this size under the strongest runtimes."""
        return timing.latency(self.model(folder), self.new_model().eval(), self.batches("test"), self.size.batches,
                              self.size.seconds)


def save(model: ViT | SparseViT, folder: Path) -> None:
    """Into a cell's folder, whichever kind it is."""
    if isinstance(model, narrow.NarrowViT):
        narrow.save_narrow(model, folder)
    elif isinstance(model, ViT):
        save_pretrained(model, folder)
    else:
        model.save_pretrained(folder)


def _renumbered(images: ImageSet, classes: tuple[int, ...]) -> ImageSet:
    """The images of ``classes``, which become 0, 1, ... in this order."""
    chosen = images.subset(np.isin(images.labels, classes))
    labels = np.argsort(classes)[np.searchsorted(np.sort(classes), chosen.labels)]
    return dataclasses.replace(chosen, labels=labels, classes=tuple(images.classes[number] for number in classes))


def _noise(size: Size, split: str) -> ImageSet:
    rng = np.random.default_rng(len(split))
    count = max(size.take or 16, 16)
    labels = np.fromiter(itertools.islice(itertools.cycle(range(size.classes)), count), dtype=np.int64)
    pixels = rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    names = tuple(map(str, range(size.classes)))
    return ImageSet(pixels, labels, names, data.tiny_imagenet.MEAN, data.tiny_imagenet.STD, "noise", split)
