"""Writes programs for tests: named slots and steps in, words and weights out. No memory is shared between slots.

For ``target`` "cpu" (packed float32) or "cuda" (padded rows of any dtype).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vitsparse import _core

MAGIC, VERSION = 0x76737067, 2
PATCHES, LINEAR, SUM_NORM, ATTENTION, APPLY_PATTERN, MEAN_ROWS, FILL, QKV_ATTENTION, MLP, NORM_LINEAR = range(1, 11)
ARENA, CONSTANT, RESULT = range(3)
NONE = (-1, 0, 0, 0)


def bits(x: float) -> int:
    return struct.unpack("<i", struct.pack("<f", x))[0]


@dataclass
class Part:
    """A part of a SUM_NORM: indices of sources, or of earlier parts counted on from there; views, or ``NONE``."""

    adds: list[int]
    minuses: list[int] = field(default_factory=list)
    offset: Tensor | None = None
    total: tuple[int, ...] = NONE
    normed: tuple[int, ...] = NONE


@dataclass
class ProgramWriter:
    channels: int
    image_size: int
    slots: list[tuple[int, int, int, int]] = field(default_factory=list)
    steps: list[list[int]] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    arena: int = 0
    stored: int = 0
    output: int = 0
    target: str = "cpu"
    _shared_wave: int | None = None

    def store(self, values: Tensor | np.ndarray) -> int:
        flat = np.asarray(values, dtype=np.float32).ravel()
        flat = np.concatenate([flat, np.full(-flat.size % 16, np.nan, np.float32)])  # what lies between is never read
        offset, self.stored = self.stored, self.stored + flat.size
        self.weights.append(flat)
        return offset

    def pack(self, weight: Tensor) -> int:
        if self.target == "cuda":
            return self.store(torch.nn.functional.pad(weight.detach(), (0, -weight.shape[1] % 8)))
        return self.store(_core.pack_linear(weight.detach().numpy()))

    def slot(self, rows: int, width: int) -> int:
        self.slots.append((ARENA, self.arena, rows, width))
        self.arena += -(-rows * width // 16) * 16
        return len(self.slots) - 1

    def constant(self, values: Tensor) -> int:
        self.slots.append((CONSTANT, self.store(values), *values.shape))
        return len(self.slots) - 1

    def result(self, rows: int, width: int) -> int:
        self.slots.append((RESULT, 0, rows, width))
        self.output = len(self.slots) - 1
        return self.output

    def view(self, slot: int, row0: int = 0, rows: int | None = None, col0: int = 0) -> tuple[int, int, int, int]:
        return (slot, row0, self.slots[slot][2] - row0 if rows is None else rows, col0)

    def step(self, op: int, *operands: int | tuple[int, ...]) -> None:
        flat = [word for operand in operands for word in (operand if isinstance(operand, tuple) else (operand,))]
        wave = self.next_wave() if self._shared_wave is None else self._shared_wave
        self.steps.append([op, wave, len(flat), *flat])

    def next_wave(self) -> int:
        return self.steps[-1][1] + 1 if self.steps else 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """The steps written inside share one wave."""
        self._shared_wave = self.next_wave()
        yield
        self._shared_wave = None

    def linear(self, src, dst, weight: Tensor, bias: Tensor | None = None, gelu=False, accumulate=False) -> None:
        bias_rows = 1 if bias is None or bias.dim() == 1 else bias.shape[0]
        self.step(LINEAR, src, dst, weight.shape[1], weight.shape[0], self.pack(weight),
                  -1 if bias is None else self.store(bias.detach()), bias_rows, int(gelu), int(accumulate))

    def sum_norm(self, sources, offset: Tensor | None, width: int, eps: float, total, normed) -> None:
        """One part: all sources added."""
        self.sum_norms(sources, width, eps, [Part(list(range(len(sources))), [], offset, total, normed)])

    def sum_norms(self, sources, width: int, eps: float, parts: list[Part]) -> None:
        words: list[int | tuple[int, ...]] = []
        for part in parts:
            stored = -1 if part.offset is None else self.store(part.offset.detach())
            rows = 1 if part.offset is None or part.offset.dim() == 1 else len(part.offset)
            words += [len(part.adds), len(part.minuses), stored, rows, part.total, part.normed]
            words += [*part.adds, *part.minuses]
        self.step(SUM_NORM, len(sources), len(parts), width, bits(eps), *sources, *words)

    def qkv_attention(self, src, dst, weight: Tensor, bias: Tensor | None, heads: int, scale: float) -> None:
        self.step(QKV_ATTENTION, src, dst, weight.shape[1], heads, weight.shape[0] // heads // 3, self.pack(weight),
                  -1 if bias is None else self.store(bias), bits(scale))

    def mlp(self, adds, minuses, dst, weights: tuple[Tensor, ...], *, eps: float, offset: Tensor | None = None,
            total=NONE) -> None:
        """``weights``: weight1, bias1, weight2 and bias2, or without bias2."""
        first, bias1, second, *bias2 = weights
        rows = 1 if offset is None or offset.dim() == 1 else len(offset)
        self.step(MLP, len(adds), len(minuses), first.shape[1], bits(eps), len(first), len(second), self.pack(first),
                  self.store(bias1), self.pack(second), self.store(bias2[0]) if bias2 else -1,
                  -1 if offset is None else self.store(offset), rows, total, dst, *adds, *minuses)

    def norm_linear(self, adds, minuses, dst, weights: tuple[Tensor, ...], *, offset: Tensor | None = None, total=NONE,
                    gelu=False) -> None:
        """``weights``: weight and bias, or weight alone. The norm's epsilon is 1e-5."""
        weight, *bias = weights
        rows = 1 if offset is None or offset.dim() == 1 else len(offset)
        self.step(NORM_LINEAR, len(adds), len(minuses), weight.shape[1], bits(1e-5),
                  -1 if offset is None else self.store(offset), rows, total, dst, len(weight), self.pack(weight),
                  self.store(bias[0]) if bias else -1, 1, int(gelu), *adds, *minuses)

    def words(self) -> Tensor:
        header = [MAGIC, VERSION, len(self.slots), len(self.steps)]
        header += [self.arena, self.channels, self.image_size, self.output]
        body = [word for part in (*self.slots, *self.steps) for word in part]
        return torch.tensor(header + body, dtype=torch.int64)

    def blob(self) -> Tensor:
        return torch.from_numpy(np.concatenate([*self.weights, np.zeros(16, np.float32)]))


def write_dense(model, target: str = "cpu") -> ProgramWriter:
    """The program of a dense ``vitsparse.model`` ViT: every step the compiler can emit for one, and nothing clever."""
    c = model.config
    tokens, width, heads, dim = c.num_tokens, c.embed_dim, c.num_heads, c.head_dim
    p = ProgramWriter(c.in_chans, c.img_size, target=target)
    patches = p.slot(c.num_patches, c.in_chans * c.patch_size**2)
    stream, normed, z = p.slot(tokens, width), p.slot(tokens, width), p.slot(tokens, width)
    qkv, hidden, mean = p.slot(tokens, 3 * width), p.slot(tokens, c.mlp_hidden), p.slot(1, width)
    logits = p.result(1, c.num_classes)
    position = model.pos_embed[0]
    first = (model.cls_token[0] + position[:1]).detach()
    conv = model.patch_embed.proj
    p.step(PATCHES, p.view(patches), c.patch_size)
    p.step(FILL, p.store(first), p.view(stream, 0, 1), width)
    p.linear(p.view(patches), p.view(stream, 1), conv.weight.flatten(1), conv.bias + position[1:])
    for block in model.blocks:
        for norm, read in ((block.norm1, "attention"), (block.norm2, "mlp")):
            p.sum_norm([p.view(stream)], None, width, c.norm_eps, NONE, p.view(normed))
            into = block.attn.qkv if read == "attention" else block.mlp.fc1
            weight, bias = into.weight * norm.weight, into.weight @ norm.bias + into.bias
            if read == "attention":
                p.linear(p.view(normed), p.view(qkv), weight, bias)
                q, k, v = (p.view(qkv, col0=i * width) for i in range(3))
                p.step(ATTENTION, q, k, v, p.view(z), heads, dim, bits(dim**-0.5))
                p.linear(p.view(z), p.view(stream), block.attn.proj.weight, block.attn.proj.bias, accumulate=True)
            else:
                p.linear(p.view(normed), p.view(hidden), weight, bias, gelu=True)
                p.linear(p.view(hidden), p.view(stream), block.mlp.fc2.weight, block.mlp.fc2.bias, accumulate=True)
    if c.global_pool == "avg":
        p.step(MEAN_ROWS, p.view(stream, 1), p.view(mean), width)
        norm, row = model.fc_norm, p.view(mean)
    else:
        norm, row = model.norm, p.view(stream, 0, 1)
    last = p.view(normed, 0, 1)
    p.sum_norm([row], None, width, c.norm_eps, NONE, last)
    p.linear(last, p.view(logits), model.head.weight * norm.weight, model.head.weight @ norm.bias + model.head.bias)
    return p
