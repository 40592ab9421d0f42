"""``apply_pattern``: values weighted by a constant attention pattern. This file owns the contract.

    reference   vitsparse/backends/reference.py          torch   vitsparse/backends/portable.py
    cpu         kernels/cpu/apply_pattern*.{h,cpp},  bound by csrc/cpu/apply_pattern.cpp
    cuda        kernels/cuda/apply_pattern*.{h,cuh,cu},  bound by csrc/cuda/apply_pattern.cpp
    triton      kernels/triton/apply_pattern.py,  bound by vitsparse/ops/triton.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import portable, reference
from .backend import choose
from .checks import expect, offered
from .gradient import differentiate_as


def apply_pattern(pattern: Tensor, v: Tensor, backend: str = "auto") -> Tensor:
    """pattern v for each image and head, contiguous [B, Tq, heads * head_dim].

    ``pattern``: [heads, Tq, Tk], as softmax would give it; ``v``: [B, Tk, heads * head_dim], heads side by side.
    Raises :class:`~vitsparse.errors.InputError` for shapes or dtypes that do not fit.
    """
    expect(v.dim() == 3, "apply_pattern: v", "[B, T, heads * head_dim]", list(v.shape))
    expect(pattern.dim() == 3 and pattern.shape[2] == v.shape[1], "apply_pattern: pattern",
           f"[heads, queries, {v.shape[1]}]", list(pattern.shape))
    expect(pattern.shape[0] >= 1 and v.shape[2] % pattern.shape[0] == 0, "apply_pattern: heads of the pattern",
           f"a divisor of {v.shape[2]}", pattern.shape[0])
    chosen = choose(backend, v.device.type, offered("apply_pattern", [pattern, v], backend))
    if chosen in ("cpu", "cuda"):
        return torch.ops.vitsparse.apply_pattern(pattern, v)
    if chosen == "triton":
        return torch.ops.vitsparse.apply_pattern_triton(pattern, v)
    return (reference if chosen == "reference" else portable).apply_pattern(pattern, v)


torch.library.define("vitsparse::apply_pattern", "(Tensor pattern, Tensor v) -> Tensor")


@torch.library.register_fake("vitsparse::apply_pattern")
def _fake(pattern: Tensor, v: Tensor) -> Tensor:
    return v.new_empty((v.shape[0], pattern.shape[1], v.shape[2]))


differentiate_as("vitsparse::apply_pattern", reference.apply_pattern)
