"""A stream that is a pure function of (epoch, step), a small ViT with dropout, and a recipe that checkpoints often."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vitsparse.model.vit import ViT
from vitsparse.training import Recipe

CLASSES = 4


@dataclass(frozen=True)
class Blobs:
    """Noise around one brightness per class: separable, and different in every batch."""

    steps_per_epoch: int = 6
    batch_size: int = 16
    num_classes: int = CLASSES
    seed: int = 0

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(start_step, self.steps_per_epoch):
            images, labels = self.batch(epoch, step)
            yield images, torch.nn.functional.one_hot(labels, CLASSES).float()

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 10_000 + epoch * 100 + step)
        labels = torch.randint(0, CLASSES, (self.batch_size,), generator=generator)
        noise = torch.randn(self.batch_size, 1, 8, 8, generator=generator)
        return 0.3 * noise + labels[:, None, None, None] - 1.5, labels

    def labelled(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        return [self.batch(epoch, step) for step in range(self.steps_per_epoch)]


def small_vit(seed: int = 0, **options) -> ViT:
    """Two layers of width 16 with every kind of dropout, so that training draws random numbers."""
    torch.manual_seed(seed)
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2,
             "num_classes": CLASSES, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.1}
    return ViT(**(sizes | options))


def small_recipe(**changes) -> Recipe:
    """Three epochs; a checkpoint every second step."""
    fields = {"epochs": 3, "batch_size": 16, "lr": 3e-3, "warmup_epochs": 0.5, "record_every": 4,
              "checkpoint_every_steps": 2}
    return Recipe(**(fields | changes))


@pytest.fixture
def stream() -> Blobs:
    return Blobs()


@pytest.fixture
def make_vit():
    return small_vit


@pytest.fixture
def make_recipe():
    return small_recipe


@pytest.fixture(autouse=True)
def _one_thread():
    """Small products are fastest on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
