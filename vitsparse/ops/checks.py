"""Checks that the contracts share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError


def expect(holds: bool, where: str, expected: object, found: object) -> None:
    """Raise :class:`InputError` for argument ``where`` unless ``holds``."""
    if not holds:
        raise InputError("an argument does not fit", where=where, expected=str(expected), found=str(found))


def offered(op: str, tensors: Sequence[Tensor]) -> tuple[str, ...]:
    """The backends that can compute ``op`` on these tensors. Raises when they differ in dtype or device."""
    first = tensors[0]
    expect(first.is_floating_point(), f"{op}: dtype", "a floating-point dtype", first.dtype)
    for tensor in tensors[1:]:
        expect(tensor.dtype == first.dtype, f"{op}: dtype", f"{first.dtype} for each tensor", tensor.dtype)
        expect(tensor.device == first.device, f"{op}: device", f"{first.device} for each tensor", tensor.device)
    return ("reference", "torch", "cpu") if first.dtype == torch.float32 else ("reference", "torch")
