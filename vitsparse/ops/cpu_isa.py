"""Which instruction set the CPU kernels use: the best this machine has, unless a test asks for a lower one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..backends import native
from ..errors import InputError

LEVELS = ("scalar", "avx2", "avx512")

torch.library.define("vitsparse::cpu_isa", "(str wanted) -> str")


def cpu_isa() -> str:
    """The level in use. Raises :class:`~vitsparse.errors.InputError` where the CPU ops are not built."""
    if reasons := native.why_not("cpu"):
        raise InputError("the CPU ops cannot be used", where="backend cpu", found="; ".join(reasons))
    return torch.ops.vitsparse.cpu_isa("")


@contextmanager
def using_cpu_isa(level: str) -> Iterator[None]:
    """Run the CPU ops of the whole process at ``level`` meanwhile. Raises RuntimeError when the machine lacks it."""
    before = cpu_isa()
    torch.ops.vitsparse.cpu_isa(level)
    try:
        yield
    finally:
        torch.ops.vitsparse.cpu_isa(before)
