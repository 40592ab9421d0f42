"""Ordering the hidden units of the MLPs, so that contiguous groups of them mean something."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from .vit import ViT


def sort_neurons(model: ViT, scores: Sequence[Tensor] | None = None) -> ViT:
    """A copy of ``model`` with each MLP's hidden units in descending order of score; it computes the same function.

    ``scores`` holds a tensor [hidden] per layer; by default a unit's score is the norm of its row of fc1 times the norm
    of its column of fc2. Equal scores keep their order. Raises :class:`InputError` when they do not fit the model.
    """
    if scores is None:
        scores = [block.mlp.fc1.weight.norm(dim=1) * block.mlp.fc2.weight.norm(dim=0) for block in model.blocks]
    hidden = model.config.mlp_hidden
    shapes = [tuple(score.shape) for score in scores]
    if shapes != [(hidden,)] * model.depth:
        raise InputError("one score per hidden unit is needed", where="scores",
                         expected=f"{model.depth} tensors [{hidden}], one for each layer",
                         found=f"{len(shapes)} of shapes {', '.join(map(str, sorted(set(shapes))))}")
    model = copy.deepcopy(model)
    with torch.no_grad():
        for block, score in zip(model.blocks, scores, strict=True):
            order = torch.argsort(score, descending=True, stable=True)
            block.mlp.fc1.weight.copy_(block.mlp.fc1.weight[order])
            block.mlp.fc1.bias.copy_(block.mlp.fc1.bias[order])
            block.mlp.fc2.weight.copy_(block.mlp.fc2.weight[:, order])
    return model
