"""From a plan to the program that a native executor runs in one call.

A program is a vector of integers (steps over slots of memory) and one blob of numbers (packed matrices, biases,
constants); the format is in kernels/common/program_format.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .execute import class_token_of
from .fold import folded_offset, folded_product
from .joined_steps import Mlp, NormLinear, QkvAttention
from .memory import ALIGN, CUT_IMAGES, row_stride
from .plan import Plan
from .steps import (
    ApplyPattern,
    Attention,
    Embed,
    Linear,
    MeanRows,
    Step,
    SumNorm,
    SumNorms,
    View,
    length,
)

MAGIC, VERSION = 0x76737067, 2
PATCHES, LINEAR, SUM_NORM, ATTENTION, APPLY_PATTERN, MEAN_ROWS, FILL = range(1, 8)
QKV_ATTENTION, MLP, NORM_LINEAR = range(8, 11)
ARENA, CONSTANT, RESULT = range(3)
PackLinear = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Program:
    """``code`` int64 [n] and ``blob`` [m], as ``torch.ops.vitsparse.run_program`` takes them.

    ``device_code``: the same integers in a GPU's memory, where that is what runs them.
    """

    code: Tensor
    blob: Tensor
    device_code: Tensor | None = None

    def to(self, like: Tensor) -> Program:
        """For the GPU and in the dtype of ``like``; the code itself stays, the host reads it too."""
        return Program(self.code, self.blob.to(like.device, like.dtype), self.code.to(like.device))


def pack_rows(weight: np.ndarray) -> np.ndarray:
    """A matrix [N, K] as the CUDA kernels read it: rows of a multiple of 8 numbers, 16 bytes in half precision."""
    return np.pad(weight, ((0, 0), (0, -weight.shape[1] % 8))).ravel()


def lower(plan: Plan, parameters: Mapping[str, Tensor], constants: Mapping[str, Tensor],
          pack_linear: PackLinear) -> Program:
    """The program of ``plan`` for the parameters as they are now. ``pack_linear`` is the kernel library's packer."""
    with torch.no_grad():
        return _Lowering(plan, parameters, constants, pack_linear).program()


class _Blob:
    """Constants one after the other, each aligned."""

    def __init__(self):
        self._parts: list[np.ndarray] = []
        self._size = 0

    def add(self, values: Tensor | np.ndarray) -> int:
        """Append and return the offset."""
        array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else values
        array = np.ascontiguousarray(array, dtype=np.float32).ravel()
        offset = self._size
        padded = -len(array) % ALIGN
        self._parts += [array, np.zeros(padded, np.float32)]
        self._size += len(array) + padded
        return offset

    def tensor(self) -> Tensor:
        return torch.from_numpy(np.concatenate(self._parts or [np.zeros(0, np.float32)]))


class _Lowering:
    def __init__(self, plan: Plan, parameters: Mapping[str, Tensor], constants: Mapping[str, Tensor],
                 pack_linear: PackLinear):
        self.plan, self.parameters, self.constants, self.pack_linear = plan, parameters, constants, pack_linear
        self.blob = _Blob()
        self.code: list[int] = []
        self.count = self.wave = 0
        config = plan.config
        self.patches = View(CUT_IMAGES, (0, config.num_patches), (0, config.in_chans * config.patch_size**2))
        self.values = {**plan.values, self.patches.name: self.patches}
        self.slots: list[tuple[int, int, int, int]] = []
        self.slot_of: dict[str, int] = {}

    def program(self) -> Program:
        arena = self._place_values()
        for wave in self.plan.waves:
            for step in wave:
                _EMIT[type(step)](self, step)
            self.wave += 1
        output = self.plan.output
        if output.name in self.constants:
            self._fill(self.constants[output.name], View("result", output.rows, output.cols))
        config, out = self.plan.config, self.slot_of["result"]
        header = [MAGIC, VERSION, len(self.slots), self.count, arena, config.in_chans, config.img_size, out]
        words = [*header, *(word for slot in self.slots for word in slot), *self.code]
        return Program(torch.tensor(words, dtype=torch.int64), self.blob.tensor())

    def _place_values(self) -> int:
        """Give every value a slot; values whose lifetimes do not overlap share memory. Returns the arena's size."""
        result = self.plan.output
        self._slot("result", RESULT, 0, result.rows, result.width)
        if result.name not in self.constants:
            self.slot_of[result.name] = self.slot_of["result"]
        offsets, size = self.plan.memory
        for name, offset in offsets.items():
            view = self.values[name]
            self._slot(name, ARENA, offset, view.rows, row_stride(view.cols[1]))
        return size

    def _slot(self, name: str, space: int, offset: int, rows: tuple[int, int], width: int) -> None:
        self.slot_of[name] = len(self.slots)
        self.slots.append((space, offset, length(rows), width))

    def _view(self, view: View | None) -> list[int]:
        """The four words of a view operand: slot, first row in the slot, rows, first column."""
        if view is None:
            return [-1, 0, 0, 0]
        if view.name in self.constants:
            return [self._constant_slot(view.name), view.rows[0], length(view.rows), view.cols[0]]
        first = self.values[view.name].rows[0] if view.name in self.values else view.rows[0]
        return [self.slot_of[view.name], view.rows[0] - first, length(view.rows), view.cols[0]]

    def _constant_slot(self, name: str) -> int:
        if name not in self.slot_of:
            value = self.constants[name]
            self._slot(name, CONSTANT, self.blob.add(value), (0, value.shape[0]), value.shape[1])
        return self.slot_of[name]

    def _step(self, opcode: int, operands: list[int]) -> None:
        self.code += [opcode, self.wave, len(operands), *operands]
        self.count += 1

    def _fill(self, value: Tensor, out: View) -> None:
        self._step(FILL, [self.blob.add(value), *self._view(out), value.shape[-1]])

    def embed(self, step: Embed) -> None:
        """Class token: a constant row. Patches: cut out, then one product with the position as a bias per token."""
        bias, first, last = self.parameters["patch_embed.proj.bias"].double(), *step.out.rows
        positions = self.parameters["pos_embed"][0].double() if step.positions else bias.new_zeros(last, len(bias))
        if first == 0:
            class_row = class_token_of(self.parameters, step)[0] + positions[:1]
            self._fill(class_row, View(step.out.name, (0, 1), step.out.cols))
        start = max(first, 1)
        if start >= last:
            return
        self._step(PATCHES, [*self._view(self.patches), self.plan.config.patch_size])
        self.wave += 1  # the product reads the patches
        weight = self.parameters["patch_embed.proj.weight"].flatten(1)
        source = View(self.patches.name, (start - 1, last - 1), self.patches.cols)
        out = View(step.out.name, (start, last), step.out.cols)
        self._product(source, out, weight, positions[start:last] + bias)

    def _product(self, source: View, out: View, weight: Tensor, bias: Tensor | None, *, gelu: bool = False,
                 accumulate: bool = False) -> None:
        packed = self._packed(weight)
        offset, rows = (-1, 1) if bias is None else (self.blob.add(bias), 1 if bias.ndim == 1 else len(bias))
        self._step(LINEAR, [*self._view(source), *self._view(out), weight.shape[1], weight.shape[0], packed, offset,
                            rows, int(gelu), int(accumulate)])

    def _packed(self, weight: Tensor) -> int:
        return self.blob.add(self.pack_linear(np.ascontiguousarray(weight.detach().cpu().float().numpy())))

    def linear(self, step: Linear) -> None:
        """A product with all that belongs to it folded in."""
        self._product(step.source, step.out, *folded_product(self.parameters, step), gelu=step.activation == "gelu",
                      accumulate=step.accumulate)

    def _matrix(self, step: Linear) -> tuple[int, int]:
        """Where the folded matrix and bias of a product lie (no bias: -1)."""
        weight, bias = folded_product(self.parameters, step)
        return self._packed(weight), -1 if bias is None else self.blob.add(bias)

    def qkv_attention(self, step: QkvAttention) -> None:
        head_dim = step.attention.head_dim
        self._step(QKV_ATTENTION, [*self._view(step.qkv.source), *self._view(step.attention.out), step.qkv.source.width,
                                   step.attention.heads, head_dim, *self._matrix(step.qkv), float_bits(head_dim**-0.5)])

    def norm_linear(self, step: NormLinear) -> None:
        weight, bias = folded_product(self.parameters, step.product)
        self._step(NORM_LINEAR, [*self._gathered(step.input), *self._view(step.product.out), len(weight),
                                 self._packed(weight), -1 if bias is None else self.blob.add(bias), 1,
                                 int(step.product.activation == "gelu"), *self._sources(step.input)])

    def mlp(self, step: Mlp) -> None:
        adds, minuses, width, eps, *rest = self._gathered(step.input)
        self._step(MLP, [adds, minuses, width, eps, step.up.out.width, step.down.out.width, *self._matrix(step.up),
                         *self._matrix(step.down), *rest, *self._view(step.down.out), *self._sources(step.input)])

    def _gathered(self, step: SumNorm) -> list[int]:
        """A sum that a joined step makes, but for its sources."""
        return [len(step.senders), len(step.minus), step.out.width, float_bits(self.plan.config.norm_eps),
                *self._offset(step), *self._view(step.total)]

    def _sources(self, step: SumNorm) -> list[int]:
        return [word for view in (*step.senders, *step.minus) for word in self._view(view)]

    def sum_norm(self, step: SumNorm) -> None:
        """One input."""
        self.sum_norms(SumNorms((step,)))

    def sum_norms(self, step: SumNorms) -> None:
        """Sources, then the parts: which sources (or parts before) each adds and takes away."""
        sources = step.reads
        index = {view: position for position, view in enumerate(sources)}
        parts: list[int] = []
        for position, part in enumerate(step.parts):
            adds, minuses = ([index[view] for view in views] for views in (part.senders, part.minus))
            parts += [len(adds), len(minuses), *self._offset(part), *self._view(part.total), *self._view(part.normed),
                      *adds, *minuses]
            if part.total is not None:
                index[part.total] = len(sources) + position
        views = [word for view in sources for word in self._view(view)]
        self._step(SUM_NORM, [len(sources), len(step.parts), step.out.width, float_bits(self.plan.config.norm_eps),
                              *views, *parts])

    def _offset(self, step: SumNorm) -> tuple[int, int]:
        """Where the folded offset of a sum lies, and its rows: one, or one for each token."""
        offset = folded_offset(self.parameters, self.constants, step)
        return (-1, 1) if offset is None else (self.blob.add(offset), len(offset) if offset.ndim == 2 else 1)

    def attention(self, step: Attention) -> None:
        views = [word for view in (step.q, step.k, step.v, step.out) for word in self._view(view)]
        self._step(ATTENTION, [*views, step.heads, step.head_dim, float_bits(step.head_dim**-0.5)])

    def apply_pattern(self, step: ApplyPattern) -> None:
        pattern = self.constants[step.pattern][:, step.out.rows[0]: step.out.rows[1]]
        self._step(APPLY_PATTERN, [self.blob.add(pattern), *self._view(step.v), *self._view(step.out), step.heads,
                                   step.out.width // step.heads])

    def mean_rows(self, step: MeanRows) -> None:
        self._step(MEAN_ROWS, [*self._view(step.source), *self._view(step.out), step.out.width])


_EMIT: dict[type[Step], Callable[[_Lowering, Step], None]] = {
    Embed: _Lowering.embed, Linear: _Lowering.linear, SumNorm: _Lowering.sum_norm, SumNorms: _Lowering.sum_norms,
    Attention: _Lowering.attention, ApplyPattern: _Lowering.apply_pattern, MeanRows: _Lowering.mean_rows,
    QkvAttention: _Lowering.qkv_attention, NormLinear: _Lowering.norm_linear, Mlp: _Lowering.mlp,
}  # type: ignore[dict-item]


def float_bits(value: float) -> int:
    """The float32 bit pattern of a number, as an integer operand."""
    return struct.unpack("<I", struct.pack("<f", value))[0]
