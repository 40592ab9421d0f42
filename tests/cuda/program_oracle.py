"""What a program for CUDA means, step by step in plain torch: the oracle of its kernels."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import torch
from torch import Tensor

from tests.ops import program_writer as w
from vitsparse.backends import reference


class Oracle:
    """Runs what a :class:`~tests.ops.program_writer.ProgramWriter` wrote, with the constants ``blob``, in any dtype."""

    def __init__(self, program: w.ProgramWriter, blob: Tensor, images: Tensor, dtype: torch.dtype) -> None:
        self.p, self.blob, self.images = program, blob.cpu().to(dtype), images.cpu().to(dtype)
        batch = len(images)
        self.values = [self.constant(offset, rows, width).expand(batch, rows, width) if space == w.CONSTANT else
                       torch.full((batch, rows, width), float("nan"), dtype=dtype)
                       for space, offset, rows, width in program.slots]

    def run(self) -> Tensor:
        for op, _, _, *operands in self.p.steps:
            _STEPS[op](self, iter(operands))
        return self.values[self.p.output]

    def constant(self, offset: int, *shape: int) -> Tensor | None:
        return None if offset == -1 else self.blob[offset:][:torch.Size(shape).numel()].view(shape)

    def matrix(self, offset: int, outputs: int, inputs: int) -> Tensor:
        return self.constant(offset, outputs, -(-inputs // 8) * 8)[:, :inputs]

    def view(self, words: list[int], columns: int) -> Tensor:
        slot, row0, rows, col0 = words
        return self.values[slot][:, row0: row0 + rows, col0: col0 + columns]

    def write(self, words: list[int], value: Tensor) -> None:
        if words[0] != -1:
            self.view(words, value.shape[-1])[:] = value

    def patches(self, words: Iterator[int]) -> None:
        dst, patch = take(words, 4), next(words)
        batch, channels, size, _ = self.images.shape
        cut = self.images.reshape(batch, channels, size // patch, patch, size // patch, patch)
        self.write(dst, cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch))

    def linear(self, words: Iterator[int]) -> None:
        src, dst = take(words, 4), take(words, 4)
        inputs, outputs, packed, bias, rows, gelu, accumulate = words
        bias = self.constant(bias, *([] if rows == 1 else [rows]), outputs)
        activation = "gelu" if gelu else "none"
        y = reference.linear(self.view(src, inputs), self.matrix(packed, outputs, inputs), bias, activation)
        self.write(dst, y + self.view(dst, outputs) if accumulate else y)

    def sum_norm(self, words: Iterator[int]) -> None:
        sources, parts, width, eps = take(words, 4)
        terms = [self.view(view, width) for view in [take(words, 4) for _ in range(sources)]]
        for _ in range(parts):
            adds, minuses, offset, rows = take(words, 4)
            total, normed = take(words, 4), take(words, 4)
            used = [terms[i] for i in take(words, adds)] + [-terms[i] for i in take(words, minuses)]
            if offset != -1:
                used.append(self.constant(offset, rows, width)[None])
            rows = (total if total[0] != -1 else normed)[2]
            zero = torch.zeros(len(self.images), rows, width, dtype=self.blob.dtype)
            results = reference.sum_norm([zero, *used], None, as_float(eps))
            self.write(total, results[0])
            self.write(normed, results[1])
            terms.append(results[0])

    def attention(self, words: Iterator[int]) -> None:
        views, (heads, dim, scale) = [take(words, 4) for _ in range(4)], list(words)
        q, k, v = (self.view(view, heads * dim) for view in views[:3])
        self.write(views[3], reference.attention(q, k, v, heads, as_float(scale)))

    def apply_pattern(self, words: Iterator[int]) -> None:
        pattern, v, dst, heads, dim = next(words), take(words, 4), take(words, 4), *words
        pattern = self.constant(pattern, heads, dst[2], v[2])
        self.write(dst, reference.apply_pattern(pattern, self.view(v, heads * dim)))

    def mean_rows(self, words: Iterator[int]) -> None:
        src, dst, width = take(words, 4), take(words, 4), next(words)
        self.write(dst, self.view(src, width).mean(1, keepdim=True))

    def fill(self, words: Iterator[int]) -> None:
        constant, dst, width = next(words), take(words, 4), next(words)
        self.write(dst, self.constant(constant, dst[2], width)[None])

    def qkv_attention(self, words: Iterator[int]) -> None:
        src, dst = take(words, 4), take(words, 4)
        inputs, heads, dim, weight, bias, scale = words
        bias = self.constant(bias, 3 * heads * dim)
        qkv = reference.linear(self.view(src, inputs), self.matrix(weight, 3 * heads * dim, inputs), bias)
        self.write(dst, reference.attention(*qkv.chunk(3, -1), heads, as_float(scale)))

    def mlp(self, words: Iterator[int]) -> None:
        adds, minuses, width, eps, hidden, outputs, weight1, bias1, weight2, bias2, offset, rows = take(words, 12)
        total, dst = take(words, 4), take(words, 4)
        results = self.gathered(words, adds, minuses, width, eps, (offset, rows))
        y = reference.linear(results[1], self.matrix(weight1, hidden, width), self.constant(bias1, hidden), "gelu")
        self.write(total, results[0])
        self.write(dst, reference.linear(y, self.matrix(weight2, outputs, hidden), self.constant(bias2, outputs)))

    def norm_linear(self, words: Iterator[int]) -> None:
        adds, minuses, width, eps, offset, rows = take(words, 6)
        total, dst = take(words, 4), take(words, 4)
        outputs, packed, bias, _, gelu = take(words, 5)
        results = self.gathered(words, adds, minuses, width, eps, (offset, rows))
        self.write(total, results[0])
        self.write(dst, reference.linear(results[1], self.matrix(packed, outputs, width), self.constant(bias, outputs),
                                         "gelu" if gelu else "none"))

    def gathered(self, words: Iterator[int], adds: int, minuses: int, width: int, eps: int,
                 offset: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Sum and norm of the views that come next in ``words``."""
        terms = [self.view(take(words, 4), width) * (1 if i < adds else -1) for i in range(adds + minuses)]
        if offset[0] != -1:
            terms.append(self.constant(offset[0], offset[1], width)[None])
        return reference.sum_norm(terms, None, as_float(eps))


_STEPS = {w.PATCHES: Oracle.patches, w.LINEAR: Oracle.linear, w.SUM_NORM: Oracle.sum_norm,
          w.ATTENTION: Oracle.attention, w.APPLY_PATTERN: Oracle.apply_pattern, w.MEAN_ROWS: Oracle.mean_rows,
          w.FILL: Oracle.fill, w.QKV_ATTENTION: Oracle.qkv_attention, w.MLP: Oracle.mlp,
          w.NORM_LINEAR: Oracle.norm_linear}


def take(words: Iterator[int], count: int) -> list[int]:
    return [next(words) for _ in range(count)]


def as_float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<i", bits))[0]
