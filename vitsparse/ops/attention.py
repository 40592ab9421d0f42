"""``attention``: softmax attention of each image and head. This file owns the contract.

    reference   vitsparse/backends/reference.py          torch   vitsparse/backends/portable.py
    cpu         kernels/cpu/attention*.{h,cpp},  bound by csrc/cpu/attention.cpp
    cuda        kernels/cuda/attention*.{h,cuh,cu},  bound by csrc/cuda/attention.cpp
    triton      kernels/triton/attention.py,  bound by vitsparse/ops/triton.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import portable, reference
from .backend import choose
from .checks import expect, offered
from .gradient import differentiate_as

CUDA_HEAD_DIM = 128  # max_head_dim of kernels/cuda/attention.h


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, backend: str = "auto", head_keep: Tensor | None = None
) -> Tensor:
    """softmax(scale q k^T) v for each image and head, contiguous [B, Tq, heads * head_dim].

    ``q``: [B, Tq, heads * head_dim]; ``k``, ``v``: [B, Tk, heads * head_dim], heads side by side. A batch of 1 is a
    constant that stands for every image. Views of one wide tensor are read in place.
    ``head_keep``: [B, heads], bool or numbers of which 0 means no. A head that an image does not keep gives zeros
    whatever its inputs, and the kernels skip its work (dynamic pruning). No gradient goes into ``head_keep``.
    The cuda backend takes heads of up to 128 columns.
    Raises :class:`~vitsparse.errors.InputError` for shapes or dtypes that do not fit.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        fits = x.dim() == 3 and x.shape[2] == q.shape[-1]
        expect(fits, f"attention: {name}", f"[B, T, {q.shape[-1]}]", list(x.shape))
    images = max(x.shape[0] for x in (q, k, v))
    for name, x in (("q", q), ("k", k), ("v", v)):
        expect(x.shape[0] in (1, images), f"attention: batch of {name}", f"{images} or 1", x.shape[0])
    tokens = (k.shape[1], v.shape[1])
    expect(k.shape[1] == v.shape[1] >= 1, "attention: tokens of k and v", "one number, at least 1", tokens)
    expect(heads >= 1 and q.shape[2] % heads == 0, "attention: heads", f"a divisor of {q.shape[2]}", heads)
    keep = None if head_keep is None else checked_keep("attention", head_keep, images, heads, q)
    can = without_wide_heads("attention", offered("attention", [q, k, v], backend), q.shape[2] // heads, backend)
    chosen = choose(backend, q.device.type, can)
    if chosen in ("cpu", "cuda"):
        return torch.ops.vitsparse.attention(q, k, v, heads, scale, keep)
    if chosen == "triton":
        return torch.ops.vitsparse.attention_triton(q, k, v, heads, scale, keep)
    return (reference if chosen == "reference" else portable).attention(q, k, v, heads, scale, keep)


def checked_keep(op: str, head_keep: Tensor, images: int, heads: int, like: Tensor) -> Tensor:
    """``head_keep`` as bool [images, heads], on the device of ``like``."""
    fits = head_keep.dim() == 2 and head_keep.shape == (images, heads)
    expect(fits, f"{op}: head_keep", [images, heads], list(head_keep.shape))
    expect(head_keep.device == like.device, f"{op}: device of head_keep", like.device, head_keep.device)
    return head_keep if head_keep.dtype == torch.bool else head_keep != 0


def without_wide_heads(op: str, backends: tuple[str, ...], head_dim: int, wanted: str) -> tuple[str, ...]:
    """The backends that take heads of this width. Raises when ``wanted`` is "cuda" and does not."""
    if head_dim <= CUDA_HEAD_DIM or "cuda" not in backends:
        return backends
    expect(wanted != "cuda", f"{op}: columns of a head, backend cuda", f"at most {CUDA_HEAD_DIM}", head_dim)
    return tuple(name for name in backends if name != "cuda")


torch.library.define("vitsparse::attention",
                     "(Tensor q, Tensor k, Tensor v, int heads, float scale, Tensor? head_keep=None) -> Tensor")


@torch.library.register_fake("vitsparse::attention")
def _fake(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, head_keep: Tensor | None = None) -> Tensor:
    return q.new_empty((max(q.shape[0], k.shape[0], v.shape[0]), *q.shape[1:]))


differentiate_as("vitsparse::attention", reference.attention)
