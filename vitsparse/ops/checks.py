"""Checks that the contracts share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import triton
from ..errors import InputError


def expect(holds: bool, where: str, expected: object, found: object) -> None:
    """Raise :class:`InputError` for argument ``where`` unless ``holds``."""
    if not holds:
        raise InputError("an argument does not fit", where=where, expected=str(expected), found=str(found))


def check_senders(op: str, senders: Sequence[Tensor], offset: Tensor | None) -> None:
    """Raise :class:`InputError` unless ``senders`` are some tensors [B, T, D] of one shape, and ``offset`` [T, D]."""
    expect(len(senders) > 0, f"{op}: senders", "at least one tensor", "none")
    shape = senders[0].shape
    expect(len(shape) == 3, f"{op}: senders", "[B, T, D]", list(shape))
    for sender in senders[1:]:
        expect(sender.shape == shape, f"{op}: senders", f"{list(shape)} for each", list(sender.shape))
    if offset is not None:
        expect(offset.shape == shape[1:], f"{op}: offset", list(shape[1:]), list(offset.shape))


def offered(op: str, tensors: Sequence[Tensor], wanted: str = "auto") -> tuple[str, ...]:
    """The backends that can compute ``op`` on these tensors.

    Raises when they differ in dtype or device, and when ``wanted`` is "cuda" and the device lacks their dtype.
    """
    first = tensors[0]
    expect(first.is_floating_point(), f"{op}: dtype", "a floating-point dtype", first.dtype)
    for tensor in tensors[1:]:
        expect(tensor.dtype == first.dtype, f"{op}: dtype", f"{first.dtype} for each tensor", tensor.dtype)
        expect(tensor.device == first.device, f"{op}: device", f"{first.device} for each tensor", tensor.device)
    anywhere = ("reference", "torch")
    if first.is_cuda and first.dtype in (torch.float32, torch.float16, torch.bfloat16):
        if first.dtype != torch.bfloat16 or (capability := torch.cuda.get_device_capability(first.device)) >= (8, 0):
            return (*anywhere, "cuda", "triton")
        if wanted == "cuda":
            raise InputError("bfloat16 needs compute capability 8.0 or higher", where=f"{op}: dtype",
                             found="{}.{}".format(*capability), remedy="use float16, or backend 'torch'")
    if first.device.type == "cpu" and first.dtype in (torch.float32, torch.float16):
        interpreter = ("triton",) if triton.interpreted() else ()
        return (*anywhere, *(("cpu",) if first.dtype == torch.float32 else ()), *interpreter)
    return anywhere
