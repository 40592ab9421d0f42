"""The two sizes in which the experiments are run, as values: models, recipes and searches. Budgets and random seeds are
those of the cells."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsparse.data import Augmentation
from vitsparse.training import Recipe

COST_TABLE = Path(__file__).parents[1] / "benchmarks/cost_tables/amd-epyc-1-thread.json"
"""Predicts latencies for the searches, on every machine, so that they find the same circuits everywhere."""

# All that the seed project did to its images: its notebook's transforms, on every image.
SEED_AUGMENTATION = Augmentation(flip=0.5, crop_scale=(0.5, 1.0), rotation_degrees=15.0, noise_std=0.02,
                                 erase_prob=0.25, cutmix_alpha=1.0, mixup_alpha=0.2, mix_prob=1.0)
# Half of the images are left unmixed, and none gets noise: thirty epochs are short.
OWN_AUGMENTATION = Augmentation(flip=0.5, crop_scale=(0.5, 1.0), rotation_degrees=10.0, erase_prob=0.25,
                                cutmix_alpha=1.0, mixup_alpha=0.2, mix_prob=0.5)


@dataclass(frozen=True)
class Search:
    """How circuits are looked for. ``mlp_groups`` of the graph; ``images`` of the training set that the metric is
    measured on (``acdc_images`` for ACDC), ``ablation_images`` for the means; ``step``: share of the latency that a
    round of ``budgeted`` saves; the thresholds of ACDC are in nats."""

    mlp_groups: int = 8
    images: int = 256
    ablation_images: int = 4096
    batch_size: int = 128
    acdc_images: int = 256
    step: float = 0.04
    operator_threshold: float = 5e-2
    head_threshold: float = 1e-3


@dataclass(frozen=True)
class Size:
    """One scale of all experiments. ``classes`` are the first so many of Tiny ImageNet, ``batches`` those of latency.

    ``seed`` and ``own`` are the two recipes from scratch, ``again`` the seed's five further epochs (same loss, lower
    rate), ``finetune`` ours: five epochs with the dense model as teacher. ``chosen`` are the classes of the experiment
    ``classes``; ``take`` limits the images of a split, for rehearsals; ``seconds`` is how long each candidate is timed.
    """

    name: str
    model: str
    classes: int
    seed: Recipe
    own: Recipe
    again: Recipe
    finetune: Recipe
    search: Search = Search()
    batches: tuple[int, ...] = (1, 32)
    chosen: tuple[int, ...] = ()
    take: int | None = None
    seconds: float = 1.0

    def augmentation(self, recipe: Recipe) -> Augmentation:
        """The seed's for the seed's recipes, else ours."""
        return SEED_AUGMENTATION if recipe in (self.seed, self.again) else OWN_AUGMENTATION

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def shrunk(self) -> Size:
        """The same on a handful of images, for a rehearsal: same models, same code, two updates each."""
        short = {"epochs": 1, "batch_size": 8, "warmup_epochs": 0, "checkpoint_every_epochs": 0}
        recipes = {name: dataclasses.replace(getattr(self, name), **short)
                   for name in ("seed", "own", "again", "finetune")}
        search = dataclasses.replace(self.search, images=4, ablation_images=4, acdc_images=2, batch_size=4, step=0.5,
                                     operator_threshold=10.0, head_threshold=10.0)
        return dataclasses.replace(self, **recipes, search=search, take=16, seconds=0.0)


# An epoch on a GPU takes three seconds: a checkpoint after each would cost as much as a quarter of it.
_COMMON = {"batch_size": 128, "record_every": 0, "cuda_graph": True, "checkpoint_every_epochs": 0,
           "checkpoint_every_s": 30.0}
_SCRATCH, _AGAIN = {"epochs": 30, **_COMMON}, {"epochs": 5, **_COMMON}

SMALL = Size(
    name="small", model="vit_tiny_imagenet_p8_d128_l6_h4", classes=20,
    seed=Recipe(**_SCRATCH, lr=1e-3, warmup_epochs=3, amp="bf16"),
    own=Recipe(**_SCRATCH, optimizer="muon", lr=4e-3, warmup_epochs=2, label_smoothing=0.1, amp="bf16"),
    again=Recipe(**_AGAIN, lr=1e-4, warmup_epochs=0.5, amp="bf16"),
    finetune=Recipe(**_AGAIN, optimizer="muon", lr=1e-3, warmup_epochs=0.5, distill_weight=0.9, amp="bf16"),
    search=Search(head_threshold=2e-3), chosen=tuple(range(0, 20, 2)))

FULL = Size(
    name="full", model="vit_tiny_imagenet_p8_d256_l12_h8", classes=200,
    seed=Recipe(**_SCRATCH, lr=1e-3, warmup_epochs=3),
    own=Recipe(**_SCRATCH | {"batch_size": 256}, optimizer="muon", lr=4e-3, warmup_epochs=2, label_smoothing=0.1),
    again=Recipe(**_AGAIN, lr=1e-4, warmup_epochs=0.5),
    finetune=Recipe(**_AGAIN | {"batch_size": 256}, optimizer="muon", lr=1e-3, warmup_epochs=0.5, distill_weight=0.9),
    search=Search(images=1024, ablation_images=8192, acdc_images=512), batches=(1, 128),
    chosen=tuple(range(0, 200, 20)))

SIZES = {size.name: size for size in (SMALL, FULL)}
