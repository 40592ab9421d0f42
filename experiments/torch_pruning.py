"""Torch-Pruning (Fang et al., "DepGraph", CVPR 2023): whole heads and hidden units out of a dense ViT, by that library.

It is used as its authors advise for ViTs: group Taylor importance from gradients on training images, ranked over all
layers, heads among heads and units among units ("Isomorphic Pruning", Fang et al., ECCV 2024). The gradients are taken
anew before each of many small steps. Only the insides of attention and MLP get narrower, their "bottleneck": by their
own table a ViT-B/16 is then 0.13 points worse after 300 epochs than one whose residual stream was cut too. Here there
are few epochs, and what is cut is of the kind that our circuits cut.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitsparse import ViT
from vitsparse.evaluation.runtimes import require

from .narrow import NarrowViT, flops_of

# A step takes a hundredth of all heads and units; hidden units stay a multiple of 8, which matrix kernels like.
OPTIONS = {"global_pruning": True, "isomorphic": True, "prune_num_heads": True, "prune_head_dims": False,
           "pruning_ratio": 1.0, "head_pruning_ratio": 1.0, "iterative_steps": 100, "round_to": 8}


def library() -> ModuleType:
    """The package; :class:`~vitsparse.InputError` where it is missing."""
    require("torch_pruning", "cells torch-pruning-*", "pip install 'vitsparse[experiments]'")
    import torch_pruning

    return torch_pruning


def settings() -> dict[str, Any]:
    """What decides the pruning, as plain values."""
    return {"library": f"torch-pruning {version('torch-pruning')}", "importance": "GroupTaylorImportance",
            "prunes": "heads and hidden units", **OPTIONS}


def narrowed(model: ViT, batches: Sequence[tuple[Tensor, Tensor]], flops: int) -> NarrowViT:
    """A copy of ``model`` cut to about ``flops`` an image: of the last two steps, the one that is nearer to it, or as
    far as the library goes, which leaves every layer a head and some units.

    ``batches`` are images [B, C, S, S] with labels [B], for the gradients of the cross entropy.
    """
    work = copy.deepcopy(model).eval()
    pruner = _pruner(library(), work, batches[0][0][:1])
    before = after = NarrowViT.of(work)
    while flops_of(after) > flops and pruner.current_step < pruner.iterative_steps:
        _accumulate_gradients(work, batches)
        _step(work, pruner)
        before, after = after, NarrowViT.of(work)
    return min(after, before, key=lambda narrow: abs(flops_of(narrow) - flops))


def _pruner(tp: ModuleType, model: ViT, example: Tensor) -> Any:
    heads = {block.attn.qkv: block.attn.num_heads for block in model.blocks}
    stream = [model.patch_embed.proj, model.head, *(layer for block in model.blocks
                                                    for layer in (block.attn.proj, block.mlp.fc2))]
    # The width of the residual stream is never cut; naming its dimension keeps the library from guessing it.
    width = [(parameter, parameter.ndim - 1) for name, parameter in model.named_parameters()
             if name in ("cls_token", "pos_embed") or name.endswith(".gamma")]
    # Its two dictionaries of channel groups are default arguments, which all pruners of a process would share.
    return tp.pruner.BasePruner(model, example, tp.importance.GroupTaylorImportance(), num_heads=heads,
                                ignored_layers=stream, unwrapped_parameters=width, in_channel_groups={},
                                out_channel_groups={}, **OPTIONS)


def _accumulate_gradients(model: ViT, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Of the mean loss, added up over the batches."""
    model.zero_grad()
    with torch.enable_grad():
        for images, labels in batches:
            F.cross_entropy(model(images), labels).backward()


def _step(model: ViT, pruner: Any) -> None:
    """One step of the library, and the number of heads that are left wherever it is kept.

    The library fails in a step in which no head has to go, and leaves the model's own count of heads to the caller.
    Where it keeps the last heads of a layer after all, it has counted them off.
    """
    left = 1 - pruner.per_step_head_pruning_ratio[pruner.current_step + 1]
    pruner.prune_num_heads = sum(pruner.num_heads.values()) > int(left * pruner.initial_total_heads)
    pruner.step()
    width = model.config.embed_dim // model.config.num_heads
    for block in model.blocks:
        heads = block.attn.proj.in_features // width
        block.attn.num_heads = heads
        pruner.num_heads[block.attn.qkv] = pruner.out_channel_groups[block.attn.qkv] = heads
