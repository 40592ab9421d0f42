"""What cells do, as functions from a lab and a folder to what was made. Each leaves its model in the folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vitsparse import Ablation, Circuit, SparseViT, ViT, sort_neurons, sparsify
from vitsparse.compiler import dense_flops
from vitsparse.evaluation.ablation import fingerprint
from vitsparse.training import Recipe

from . import torch_pruning
from .circuits import by_acdc, within_budget
from .lab import Lab, Made, save

Make = Callable[[Lab, Path], Made]


def trained(recipe: str) -> Make:
    """A dense model from scratch, its hidden units sorted."""

    def make(lab: Lab, folder: Path) -> Made:
        chosen: Recipe = getattr(lab.size, recipe)
        model = lab.new_model()
        training = lab.train(model, chosen, folder)
        model = sort_neurons(model)  # the same function; contiguous groups of units mean something from here on
        save(model, folder)
        return Made(_settings(lab, **_training(lab, recipe, chosen)), lab.judge(model), training=training)

    return make


def trained_again(start: str, recipe: str) -> Make:
    """The dense model of ``start``, five epochs more; its own teacher where the recipe wants one."""

    def make(lab: Lab, folder: Path) -> Made:
        chosen: Recipe = getattr(lab.size, recipe)
        model, first = lab.dense(start), lab.dense(start)
        training = lab.train(model, chosen, folder, teacher=first if chosen.distill_weight else None)
        save(model, folder)
        settings = _settings(lab, **_training(lab, recipe, chosen), start=_named(start, first))
        return Made(settings, lab.judge(model, first), training=training)

    return make


def cut(start: str, granularity: str) -> Make:
    """The dense model of ``start``, cut by ACDC; no training."""

    def make(lab: Lab, folder: Path) -> Made:
        dense = lab.dense(start)
        circuit, ablation = by_acdc(lab, dense, granularity, folder)
        sparse = _compiled(lab, dense, circuit, ablation)
        save(sparse, folder)
        settings = _settings(lab, start=_named(start, dense), granularity=granularity, mlp_groups=1,
                             search=_search(lab))
        return Made(settings, lab.judge(sparse, dense))

    return make


def cut_trained_again(start: str, before: str, recipe: str) -> Make:
    """The sparse model that the cell ``before`` left of the dense ``start``, trained further."""

    def make(lab: Lab, folder: Path) -> Made:
        chosen: Recipe = getattr(lab.size, recipe)
        dense, sparse = lab.dense(start), lab.model(lab.require(before))
        training = _trained_if_possible(lab, sparse, chosen, folder, dense)
        save(sparse, folder)
        settings = _settings(lab, **_training(lab, recipe, chosen), start=_named(start, dense), before=before)
        return Made(settings, lab.judge(sparse, dense), training=training)

    return make


def pruned(start: str, method: str, budget: float, seed: int = 0) -> Make:
    """``start`` pruned by ``method`` to a share of its predicted latency, then trained with ``start`` as teacher."""

    def make(lab: Lab, folder: Path) -> Made:
        dense = _of_task(lab, lab.dense(start))
        circuit, ablation = within_budget(lab, dense, method, budget, folder, seed)
        sparse = _compiled(lab, dense, circuit, ablation)
        before = lab.judge(sparse, dense)
        training = _trained_if_possible(lab, sparse, lab.size.finetune, folder, dense, seed)
        save(sparse, folder)
        settings = _settings(lab, **_training(lab, "finetune", lab.size.finetune, seed), start=_named(start, dense),
                             method=method, budget=budget, seed=seed, search=_search(lab))
        return Made(settings, lab.judge(sparse, dense), before, training)

    return make


def smaller(target: str, teacher: str) -> Make:
    """A dense model with the FLOPs of the model of ``target``, trained from scratch as long, with the same teacher in
    the last epochs: is pruning worth it?"""

    def make(lab: Lab, folder: Path) -> Made:
        flops = lab.model(lab.require(target)).plan.flops
        model, dense = lab.new_model(**shape_of(lab, flops)), lab.dense(teacher)
        first = lab.train(model, lab.size.own, folder / "scratch")
        second = lab.train(model, lab.size.finetune, folder, teacher=dense)
        save(model, folder)
        settings = _settings(lab, scratch=_training(lab, "own", lab.size.own), target=target,
                             shape=model.config.to_dict(), teacher=_named(teacher, dense),
                             **_training(lab, "finetune", lab.size.finetune))
        return Made(settings, lab.judge(model, dense), training={"scratch": first, **second})

    return make


def torch_pruned(start: str, target: str) -> Make:
    """``start`` narrowed by Torch-Pruning to the FLOPs of the model of ``target``, then trained with ``start`` as
    teacher. What it left before training is kept, so that a run that is killed goes on with the very same model."""

    def make(lab: Lab, folder: Path) -> Made:
        torch_pruning.library()
        dense, flops = lab.dense(start), lab.model(lab.require(target)).plan.flops
        cut = folder / f"pruned-{fingerprint(dense)[:12]}-{flops}"
        if not (cut / "config.json").exists():
            save(torch_pruning.narrowed(dense, lab.search_batches(lab.size.search.images), flops), cut)
        model = lab.model(cut)
        before = lab.judge(model, dense)
        training = lab.train(model, lab.size.finetune, folder, teacher=dense)
        save(model, folder)
        settings = _settings(lab, **_training(lab, "finetune", lab.size.finetune), start=_named(start, dense),
                             method="torch-pruning", target=target, target_flops=flops, widths=model.widths,
                             images=lab.size.search.images, pruner=torch_pruning.settings())
        return Made(settings, lab.judge(model, dense), before, training)

    return make


def task_of_chosen(start: str) -> Make:
    """The dense model of ``start`` as one of the chosen classes alone, trained on them with itself as teacher."""

    def make(lab: Lab, folder: Path) -> Made:
        dense, model = _of_task(lab, lab.dense(start)), _of_task(lab, lab.dense(start))
        before = lab.judge(model, dense)
        training = lab.train(model, lab.size.finetune, folder, teacher=dense)
        save(model, folder)
        settings = _settings(lab, **_training(lab, "finetune", lab.size.finetune), start=_named(start, dense))
        return Made(settings, lab.judge(model, dense), before, training)

    return make


def shape_of(lab: Lab, flops: int) -> dict[str, int]:
    """Width, depth and heads of a dense model of about so many FLOPs: within a twentieth, the one whose proportions are
    nearest to those of the size's own; its heads are as wide."""
    full = lab.new_model().config
    head = full.embed_dim // full.num_heads
    shapes = [{"embed_dim": heads * head, "num_heads": heads, "depth": depth}
              for heads in range(1, full.num_heads + 1) for depth in range(1, full.depth + 1)]
    off = [abs(math.log(dense_flops(dataclasses.replace(full, **shape)) / flops)) for shape in shapes]
    near = [shape for shape, error in zip(shapes, off, strict=True) if error <= max(min(off), 0.05)]
    return min(near, key=lambda s: abs(math.log(s["embed_dim"] * full.depth / (s["depth"] * full.embed_dim))))


def _compiled(lab: Lab, dense: ViT, circuit: Circuit, ablation: Ablation) -> SparseViT:
    images = lab.search_batches(16)[0][0]
    return sparsify(dense, circuit, ablation=ablation, calibration=images)


def _trained_if_possible(lab: Lab, sparse: SparseViT, recipe: Recipe, folder: Path, dense: ViT,
                         seed: int = 0) -> dict[str, Any] | None:
    """A model that answers every image alike has nothing to train."""
    if not sparse.plan.steps:
        return None
    return lab.train(sparse, recipe, folder, teacher=dense if recipe.distill_weight else None, seed=seed)


def _of_task(lab: Lab, dense: ViT) -> ViT:
    """``dense`` with the classifier's rows of the lab's classes alone."""
    if not lab.only:
        return dense
    rows, old = list(lab.only), dense.head
    weight, bias = old.weight.detach()[rows].clone(), old.bias.detach()[rows].clone()
    dense.reset_classifier(len(rows))
    with torch.no_grad():
        dense.head.weight.copy_(weight)
        dense.head.bias.copy_(bias)
    return dense


def _settings(lab: Lab, **more: Any) -> dict[str, Any]:
    """What decided a result, as plain values; ``only``: the classes of a task of its own."""
    return {"model": lab.size.model, "classes": lab.size.classes, "only": list(lab.only) or None, "split": "seed",
            **more}


def _training(lab: Lab, name: str, recipe: Recipe, seed: int = 0) -> dict[str, Any]:
    return {"recipe_name": name, "recipe": dataclasses.replace(recipe, seed=seed).to_dict(),
            "augmentation": dataclasses.asdict(lab.size.augmentation(recipe))}


def _search(lab: Lab) -> dict[str, Any]:
    return dataclasses.asdict(lab.size.search)


def _named(cell: str, model: ViT) -> dict[str, str]:
    """A model of an earlier cell, told from another one of the same name by its weights."""
    return {"cell": cell, "fingerprint": fingerprint(model)}
