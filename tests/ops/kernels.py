"""What the tests of the CPU kernels share: the levels of this machine, the error measure, and poisoned memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitsparse.backends import native
from vitsparse.ops.cpu_isa import LEVELS, cpu_isa

needs_cpu_ops = pytest.mark.skipif(not native.available("cpu"), reason="; ".join(native.why_not("cpu")))
HERE = LEVELS[: LEVELS.index(cpu_isa()) + 1] if native.available("cpu") else ()


opcheck_reads_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def error(result: Tensor, exact: Tensor, at_least: float = 1e-30) -> float:
    """max |difference| over max |exact| (or ``at_least``); infinite when anything is NaN."""
    if result.shape != exact.shape:
        raise AssertionError(f"shape {list(result.shape)}, expected {list(exact.shape)}")
    if result.numel() == 0:
        return 0.0
    worst = (result.double() - exact).abs().max().item()
    return worst / max(exact.abs().max().item(), at_least) if worst == worst else float("inf")


def poison(*shapes: tuple[int, ...]) -> None:
    """Leave NaN in memory that torch's allocator is likely to hand out next, so that what a kernel forgets shows."""
    for tensor in [torch.full(shape, float("nan")) for shape in shapes for _ in range(3)]:
        del tensor
