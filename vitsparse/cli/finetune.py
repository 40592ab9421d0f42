"""``vitsparse finetune``: a sparse model in, the same circuit with better weights out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..compiler import SparseViT
from ..data import Augmentation
from ..data.ranks import ranks
from ..errors import InputError
from ..report import require_matplotlib
from ..training import fit
from .config import Config, DataConfig, SparseRecipe, SparsifyConfig
from .flags import Common, parse
from .shared import (
    begin,
    check_classes,
    device_of,
    draw_history,
    eval_batches,
    load_dense,
    load_images,
    train_stream,
)


@dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Train a sparse model further, with the dense model as teacher where ``finetune.distill_weight`` is above 0."""

    sparse: tyro.conf.Positional[Path]
    """folder of the sparse model"""
    dense: Path | None = None
    """folder of the dense model: the teacher"""
    data: DataConfig
    augment: Augmentation
    finetune: SparseRecipe
    sparsify: SparsifyConfig


def main(argv: Sequence[str]) -> int:
    """Fine-tune into the output folder."""
    flags, config = parse(Flags, argv, sparse=tyro.MISSING)
    if config.finetune.distill_weight and flags.dense is None:
        raise InputError("distillation needs the dense model", where="--dense", expected="its folder",
                         remedy="give it, or --finetune.distill_weight 0")
    out = begin(config, "finetune", splits=("train", "val"), files=(flags.sparse, flags.dense))
    finetune(config, flags.sparse, flags.dense, out, resume=flags.resume)
    return 0


def finetune(config: Config, model_folder: Path, dense_folder: Path | None, out: Path, *, resume: bool) -> None:
    """Train the sparse model in ``model_folder`` and write it, its records and its pictures into ``out``.

    A model that gives every image the same answer has nothing to train: it is written as it is.
    """
    require_matplotlib()
    recipe, images = config.recipe("finetune"), load_images(config, "train")
    model = SparseViT.from_pretrained(model_folder, backend=config.sparsify.backend).to(device_of(config))
    check_classes(model, images, model_folder)
    if not model.plan.steps:
        print(f"the sparse model gives every image the same answer, so there is nothing to train: {model.circuit}\n"
              "keep more edges, for one with a lower discover.threshold, for a model that is of use")
        if ranks().is_first:
            model.save_pretrained(out)
        return
    teacher = load_dense(dense_folder, config) if recipe.distill_weight else None
    history = fit(model, train_stream(config, "finetune", images), recipe, out=out, teacher=teacher,
                  val_batches=eval_batches(config, "val"), resume=resume)
    if ranks().is_first:
        model.save_pretrained(out)
        draw_history(history, out, "Fine-tuning of the sparse model")
    ranks().barrier()
    print(f"fine-tuned for {len(history.epochs)} epochs: validation accuracy {history.epochs[-1].val_accuracy:.2%} "
          f"-> {out}")
