"""What the ops launch for the shapes of the latency tables, as the dispatch itself says: the emulated device
(tests/native/emulator) is configured like each GPU and notes launches down instead of running them.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .devices import DEVICES, Device, Work
from .machine_code import demangled

EPS, BATCHES = 1e-6, (1, 128)


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and how many of its heads are left."""

    name: str
    tokens: int
    width: int
    head_dim: int
    heads: int
    hidden: int


SHAPES = (Shape("full", 65, 256, 32, 8, 1024), Shape("half", 65, 256, 32, 4, 1024),
          Shape("ViT-B", 197, 768, 64, 12, 3072))


@dataclass(frozen=True)
class Launch:
    """One launch: demangled kernel, blocks, threads of a block, its dynamic shared memory in bytes."""

    kernel: str
    blocks: int
    threads: int
    shared: int


@dataclass(frozen=True)
class Call:
    """An op called with tensors of a shape on a device; what it launched and how much work that is."""

    op: str
    shape: str
    batch: int
    dtype: torch.dtype
    device: Device
    launches: tuple[Launch, ...]
    work: Work

    def row(self) -> dict[str, Any]:
        """For the table: sizes and, in float16, the predicted time."""
        blocks = max((launch.blocks for launch in self.launches), default=0)
        predicted = {} if self.dtype != torch.float16 else {
            "predicted_us": round(1e6 * self.work.predicted(self.device, len(self.launches), blocks), 2),
            "bound": self.work.bound(self.device, len(self.launches), blocks)}
        return {"op": self.op, "shape": self.shape, "batch": self.batch,
                "dtype": str(self.dtype).removeprefix("torch."), "device": self.device.name,
                "flops": self.work.flops, "bytes": self.work.bytes,
                "launches": [vars(launch) for launch in self.launches], **predicted}


def calls(ops: Any, library: Path, devices: tuple[Device, ...] = DEVICES) -> Iterator[Call]:
    """Every op, shape, batch size, dtype and device. ``ops``: ``torch.ops.vitsparse_emulated``, of file ``library``."""
    for device in devices:
        ops.configure(device.level, False, device.multiprocessors, device.shared_limit, 0)
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            if dtype == torch.bfloat16 and device.level == 75:
                continue
            for shape in SHAPES:
                for batch in BATCHES:
                    for op, arguments, flops in _arguments(shape, batch, dtype):
                        launches, moved = _recorded(ops, library, op, arguments)
                        yield Call(op.partition("/")[0], f"{shape.name} {op.partition('/')[2]}".strip(), batch, dtype,
                                   device, launches, Work(flops, moved))


def _arguments(shape: Shape, batch: int, dtype: torch.dtype) -> Iterator[tuple[str, tuple, int]]:
    """(op/role, arguments, FLOPs) of what a layer runs."""
    tokens, width, inner, hidden = shape.tokens, shape.width, shape.heads * shape.head_dim, shape.hidden
    rows = batch * tokens

    def tensor(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=dtype)

    x, scale = tensor(batch, tokens, width), shape.head_dim ** -0.5
    attended = 4 * batch * tokens * tokens * inner
    for role, inputs, outputs, activation in (("qkv", width, 3 * inner, "none"), ("proj", inner, width, "none"),
                                              ("fc1", width, hidden, "gelu"), ("fc2", hidden, width, "none")):
        yield (f"linear/{role}", (tensor(batch, tokens, inputs), tensor(outputs, inputs), tensor(outputs), activation),
               2 * rows * inputs * outputs)
    q, k, v = (tensor(batch, tokens, inner) for _ in "qkv")
    yield "attention", (q, k, v, shape.heads, scale, None), attended
    yield ("qkv_attention", (x, tensor(3 * inner, width), tensor(3 * inner), shape.heads, scale, None),
           2 * rows * width * 3 * inner + attended)
    for count in (2, 20):
        yield f"sum_norm/{count} senders", ([tensor(batch, tokens, width) for _ in range(count)], None, EPS), 0
    yield ("mlp", ([x, tensor(batch, tokens, width)], None, EPS, tensor(hidden, width), tensor(hidden),
                   tensor(width, hidden), tensor(width)), 4 * rows * width * hidden)
    yield "apply_pattern", (tensor(shape.heads, tokens, tokens), v), attended // 2


def _recorded(ops: Any, library: Path, op: str, arguments: tuple) -> tuple[tuple[Launch, ...], int]:
    """What a call launches, and the bytes of its tensors and results."""
    ops.record(True)
    try:
        results = getattr(ops, op.partition("/")[0])(*arguments)
    finally:
        text = ops.record(False)
    moved = sum(x.numel() * x.element_size() for x in (*_tensors(arguments), *_tensors((results,))))
    return tuple(launches_of(text, library)), moved


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def library() -> Path:
    """The file of the emulated ops, which must have been loaded."""
    return next(Path(name) for name in torch.ops.loaded_libraries if name.endswith("libvitsparse_emulated.so"))


def launches_of(text: str, library: Path) -> Iterator[Launch]:
    """From what ``vitsparse_emulated::record`` returns."""
    for line in text.splitlines():
        offset, blocks, threads, shared = map(int, line.split())
        yield Launch(_names(library)[offset], blocks, threads, shared)


@functools.cache
def _names(library: Path) -> dict[int, str]:
    """Each function's name by its place in the file."""
    text = subprocess.run(["nm", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    symbols = {int(line.split()[0], 16): line.split()[2] for line in text.splitlines() if line.split()[1] in "tTwW"}
    readable = demangled(tuple(symbols.values()))
    return {place: readable[name] for place, name in symbols.items()}


