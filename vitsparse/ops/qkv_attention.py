"""``qkv_attention``: attention of the queries, keys and values that one product makes. This file owns the contract.

    reference   vitsparse/backends/reference.py          torch   vitsparse/backends/portable.py
    cuda        kernels/cuda/qkv_attention*.{h,cuh,cu},  bound by csrc/cuda/qkv_attention.cpp
    triton      kernels/triton/qkv_attention.py,  bound by vitsparse/ops/triton.py

On GPUs a block of threads makes one head of one image, and only the result goes to memory. The cpu backend has no
kernel of its own: there q, k and v lie in the cache anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import portable, reference
from .attention import checked_keep, without_wide_heads
from .backend import choose
from .checks import expect, offered
from .gradient import differentiate_as


def qkv_attention(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, scale: float, backend: str = "auto",
    head_keep: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T) v of (q, k, v) = x W^T + b for each image and head, contiguous [B, T, heads * head_dim].

    ``x``: [B, T, D]; ``weight``: [3 * heads * head_dim, D], the rows of q for all heads, then k, then v; ``bias``: one
    number for each of these rows, or None. ``head_keep``: [B, heads], as for :func:`vitsparse.ops.attention.attention`.
    The cuda backend takes heads of up to 128 columns.
    Raises :class:`~vitsparse.errors.InputError` for shapes or dtypes that do not fit.
    """
    expect(x.dim() == 3 and x.shape[1] >= 1, "qkv_attention: x", "[B, T, D] with at least one token", list(x.shape))
    expect(heads >= 1, "qkv_attention: heads", "at least 1", heads)
    fits = weight.dim() == 2 and weight.shape[1] == x.shape[2] and weight.shape[0] > 0 == weight.shape[0] % (3 * heads)
    expect(fits, "qkv_attention: weight", f"[3 * {heads} * head_dim, {x.shape[2]}]", list(weight.shape))
    if bias is not None:
        expect(bias.shape == weight.shape[:1], "qkv_attention: bias", [weight.shape[0]], list(bias.shape))
    keep = None if head_keep is None else checked_keep("qkv_attention", head_keep, x.shape[0], heads, x)
    tensors = [x, weight, *([] if bias is None else [bias])]
    can = tuple(name for name in offered("qkv_attention", tensors, backend) if name != "cpu")
    can = without_wide_heads("qkv_attention", can, weight.shape[0] // (3 * heads), backend)
    chosen = choose(backend, x.device.type, can)
    if chosen == "cuda":
        return torch.ops.vitsparse.qkv_attention(x, weight, bias, heads, scale, keep)
    if chosen == "triton":
        return torch.ops.vitsparse.qkv_attention_triton(x, weight, bias, heads, scale, keep)
    return (reference if chosen == "reference" else portable).qkv_attention(x, weight, bias, heads, scale, keep)


torch.library.define("vitsparse::qkv_attention", "(Tensor x, Tensor weight, Tensor? bias, int heads, float scale,"
                     " Tensor? head_keep=None) -> Tensor")


@torch.library.register_fake("vitsparse::qkv_attention")
def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, scale: float, head_keep: Tensor | None = None
) -> Tensor:
    return x.new_empty((*x.shape[:2], weight.shape[0] // 3))


differentiate_as("vitsparse::qkv_attention", reference.qkv_attention)
