"""How the CUDA kernels compute: the feature level of their code, and whether products add up in float16.

The level is the highest that the device has (75, 80, 90: csrc/cuda/device.cpp) unless a test asks for a lower one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..backends import native
from ..errors import InputError

LEVELS = (75, 80, 90)

torch.library.define("vitsparse::cuda_level", "(int wanted) -> int")
torch.library.define("vitsparse::cuda_half_accumulate", "(bool wanted) -> bool")


def _require() -> None:
    if reasons := native.why_not("cuda"):
        raise InputError("the CUDA ops cannot be used", where="backend cuda", found="; ".join(reasons))


@contextmanager
def using_cuda_level(level: int) -> Iterator[None]:
    """Run the CUDA ops of the whole process at ``level`` (75, 80 or 90) meanwhile.

    A launch raises RuntimeError where the device lacks the level.
    """
    _require()
    before = torch.ops.vitsparse.cuda_level(-1)
    torch.ops.vitsparse.cuda_level(level)
    try:
        yield
    finally:
        torch.ops.vitsparse.cuda_level(before)


@contextmanager
def using_half_accumulation(wanted: bool = True) -> Iterator[None]:
    """Add up float16 products in float16 within a slice of k meanwhile: GeForce cards do that at twice the rate.

    Costs accuracy. Models follow ``torch.backends.cuda.matmul.allow_fp16_accumulation`` instead.
    """
    _require()
    before = torch.ops.vitsparse.cuda_half_accumulate(wanted)
    try:
        yield
    finally:
        torch.ops.vitsparse.cuda_half_accumulate(before)
