"""A dense ViT that a structured pruner has narrowed: each block has heads and hidden units of its own number.

In files it is a folder with ``model.safetensors`` and ``config.json``, which lists the widths beside the arguments of
the model that it was cut from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from vitsparse import InputError, ViT
from vitsparse.circuit.files import in_one_order, read_json, write_bytes, write_json
from vitsparse.compiler import dense_flops
from vitsparse.model.config import ViTConfig
from vitsparse.model.weights import CONFIG_FILE, WEIGHTS_FILE, read_weights, storable

ARCHITECTURE = "narrow_vit"
HEADER = {"format": "vitsparse.experiments.narrow", "version": 1, "architecture": ARCHITECTURE}


class NarrowViT(ViT):
    """A ViT with ``widths[layer]`` = (heads, hidden units), at least 1 of each; heads are as wide as in ``config``,
    which is that of the model it was cut from. Its keys are the same, so it is trained and compiled the same."""

    def __init__(self, config: ViTConfig, widths: Sequence[tuple[int, int]], *,
                 device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__(**config.to_dict(), device=device, dtype=dtype)
        self.widths, width = tuple(map(tuple, widths)), config.embed_dim
        factory = {"device": device, "dtype": dtype}
        for block, (heads, hidden) in zip(self.blocks, self.widths, strict=True):
            inner = heads * (width // config.num_heads)
            block.attn.num_heads = heads
            block.attn.qkv = nn.Linear(width, 3 * inner, bias=config.qkv_bias, **factory)
            block.attn.proj = nn.Linear(inner, width, **factory)
            block.mlp.fc1 = nn.Linear(width, hidden, **factory)
            block.mlp.fc2 = nn.Linear(hidden, width, **factory)

    @classmethod
    def of(cls, model: ViT) -> NarrowViT:
        """A copy of ``model``, whose layers may have been cut in place."""
        widths = [(block.attn.num_heads, block.mlp.fc1.out_features) for block in model.blocks]
        weight = model.head.weight
        narrow = cls(model.config, widths, device=weight.device, dtype=weight.dtype)
        narrow.load_state_dict(model.state_dict())
        return narrow


def flops_of(model: ViT) -> int:
    """FLOPs of an image, by the rule of :func:`dense_flops`, of a dense model with the widths that its layers have."""
    config = model.config
    tokens, width, gone = config.num_tokens, config.embed_dim, 0
    for block in model.blocks:
        inner = width - block.attn.proj.in_features
        hidden = config.mlp_hidden - block.mlp.fc1.out_features
        gone += 2 * tokens * width * (4 * inner + 2 * hidden) + 4 * tokens * tokens * inner
    return dense_flops(config) - gone


def save_narrow(model: NarrowViT, folder: Path) -> None:
    """Write the folder, the configuration last: where it is, all is."""
    state = storable(model.state_dict(), None, where=folder / WEIGHTS_FILE)
    arguments = model.config.to_dict()
    data = save(state, {"format": "pt", "config": json.dumps(arguments)})
    write_bytes(folder / WEIGHTS_FILE, in_one_order(data))
    write_json(folder / CONFIG_FILE, {**HEADER, "model_args": arguments, "widths": model.widths})


def load_narrow(folder: Path, device: torch.device | str | None = None) -> NarrowViT:
    """Read what :func:`save_narrow` wrote; :class:`InputError` for anything else."""
    path = folder / CONFIG_FILE
    found = read_json(path)
    if not isinstance(found, dict) or {name: found.get(name) for name in HEADER} != HEADER:
        raise InputError("not the configuration of a narrowed ViT", where=path, expected=HEADER, found=str(found)[:80])
    config = ViTConfig.from_dict(found.get("model_args"), where=path)
    widths = found.get("widths")
    if not _fit(widths, config):
        raise InputError("the widths do not fit the model", where=path, found=str(widths)[:80], expected=(
            f"[heads, hidden units] of each of {config.depth} blocks, up to [{config.num_heads}, {config.mlp_hidden}]"))
    state, _ = read_weights(folder / WEIGHTS_FILE)
    model = NarrowViT(config, widths, device="meta")
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise InputError("the weights do not fit the widths", where=folder / WEIGHTS_FILE, found=str(error)[:200],
                         remedy="make the model anew") from error
    return model.to(device or "cpu")


def _fit(widths: object, config: ViTConfig) -> bool:
    limits = config.num_heads, config.mlp_hidden
    return isinstance(widths, list) and len(widths) == config.depth and all(
        isinstance(pair, list) and len(pair) == 2
        and all(type(count) is int and 1 <= count <= limit for count, limit in zip(pair, limits, strict=True))
        for pair in widths)
