"""Triton kernels compiled without a GPU, just as their launchers would have them compiled.

A launcher runs on CPU tensors while Triton believes in a device of the wanted capability; each launch is compiled for
it, with the types and the divisibility of the real arguments, and not run.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Compiled:
    """One compiled launch. ``shared``: bytes of shared memory; ``stack``: bytes of registers spilled to memory."""

    kernel: str
    tiles: dict[str, int]
    ptx: str
    cubin: bytes
    shared: int
    registers: int
    stack: int

    @property
    def products(self) -> int:
        """Tensor-core instructions in the code."""
        return len(re.findall(r"mma\.sync|wgmma\.mma_async", self.ptx))


class _Device:
    """What Triton asks its driver when it compiles."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # Triton remembers compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


@contextmanager
def compiling(capability: int, every_candidate: bool = False) -> Iterator[list[Compiled]]:
    """Meanwhile launches are compiled for ``capability`` and appended to the list.

    ``every_candidate``: each launch with all tiles that the tuner could choose, not just with the first.
    """
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    found: list[Compiled] = []

    def getitem(kernel: Any, grid: tuple[int, ...]) -> Callable:
        def launch(*arguments: Any, **keywords: Any) -> None:
            found.append(_examined(kernel.run(*arguments, grid=grid, warmup=True, **keywords), keywords))
        return launch

    def choose(op: str, x: Any, shape: tuple, candidates: Any, launch: Callable) -> Any:
        if every_candidate:
            [launch(candidate) for candidate in candidates[1:] if candidate]  # {}: other ops, compiled as themselves
        return candidates[0]

    with (mock.patch.object(driver, "_active", _Device(capability)),
          mock.patch.object(JITFunction, "__getitem__", getitem), mock.patch("vitsparse._triton.tune.choose", choose)):
        yield found


def _examined(kernel: Any, keywords: dict[str, Any]) -> Compiled:
    tiles = {name: value for name, value in keywords.items() if name.startswith(("BLOCK_", "num_"))}
    registers, stack = _resources(kernel.asm["cubin"])
    return Compiled(kernel.metadata.name, tiles, kernel.asm["ptx"], kernel.asm["cubin"], kernel.metadata.shared,
                    registers, stack)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack: what did not fit in them."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump", "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return int(found[1]), int(found[2])
