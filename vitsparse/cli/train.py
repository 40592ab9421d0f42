"""``vitsparse train``: images in, a dense model and its curves out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data import Augmentation
from ..data.ranks import ranks
from ..model.config import ViTConfig
from ..model.neurons import sort_neurons
from ..model.vit import ViT
from ..model.weights import save_pretrained
from ..report import require_matplotlib
from ..training import fit
from .config import Config, DataConfig, DenseRecipe, ModelConfig
from .flags import Common, parse
from .shared import begin, device_of, draw_history, eval_batches, image_shape, load_images, train_stream


@dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Train a dense ViT: config.json, model.safetensors, metrics.csv, gradient_flow.csv, pictures, checkpoint."""

    data: DataConfig
    model: ModelConfig
    train: DenseRecipe
    augment: Augmentation


def main(argv: Sequence[str]) -> int:
    """Train into the output folder."""
    flags, config = parse(Flags, argv)
    check_shape(config)
    train(config, begin(config, "train", splits=("val",)), resume=flags.resume)
    return 0


def check_shape(config: Config) -> None:
    """Refuse a model that cannot be made for the training images."""
    ViTConfig(**dataclasses.asdict(config.model), **image_shape(load_images(config, "train")))


def train(config: Config, out: Path, *, resume: bool) -> None:
    """Train the model of ``config`` and write it, its records and its pictures into ``out``."""
    require_matplotlib()
    images = load_images(config, "train")
    torch.manual_seed(config.seed)
    model = ViT(**dataclasses.asdict(config.model), **image_shape(images)).to(device_of(config))
    history = fit(model, train_stream(config, "train", images), config.recipe("train"), out=out,
                  val_batches=eval_batches(config, "val"), resume=resume)
    if ranks().is_first:
        # The same function; it lets contiguous MLP groups mean something when a circuit is searched.
        save_pretrained(sort_neurons(model), out)
        draw_history(history, out, "Dense model")
    ranks().barrier()
    last = history.epochs[-1]
    print(f"trained {sum(p.numel() for p in model.parameters()):,} parameters on {len(images):,} images for "
          f"{len(history.epochs)} epochs: validation accuracy {last.val_accuracy:.2%} -> {out}")
