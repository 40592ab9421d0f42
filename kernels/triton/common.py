"""What the kernels share: products with the right accumulator, GELU, and operands as images of rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LEAST = 16  # the smallest side of a tensor-core tile


@triton.jit
def multiply_add(a, b, total, HALF: tl.constexpr):
    """total + a b, added up in float32; HALF: in float16 within this slice of k, at twice the rate on GeForce cards."""
    if HALF:
        total += tl.dot(a, b, out_dtype=tl.float16).to(tl.float32)
    else:
        total = tl.dot(a, b, total, input_precision="ieee")  # float32 operands are for checking: no TF32
    return total


@triton.jit
def gelu(x):
    """x Phi(x), the exact one."""
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


def images_of(x: torch.Tensor) -> torch.Tensor:
    """``x`` [..., K] as [B, T, K] with dense columns: a view where its strides allow one."""
    x = x.reshape(-1, *x.shape[-2:]) if x.dim() > 3 else x[(None,) * (3 - x.dim())]
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def dense_columns(x: torch.Tensor) -> torch.Tensor:
    """``x`` with neighbours side by side in memory along the last dimension."""
    return x if x.stride(-1) == 1 else x.contiguous()


def half_accumulate(x: torch.Tensor) -> bool:
    """Whether the user lets float16 products add up in float16."""
    return x.dtype == torch.float16 and torch.backends.cuda.matmul.allow_fp16_accumulation


def tile(size: int) -> int:
    """The least side of a tile that holds ``size`` numbers."""
    return max(LEAST, triton.next_power_of_2(size))
