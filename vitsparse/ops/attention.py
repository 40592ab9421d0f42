"""``attention``: softmax attention of each image and head. This file owns the contract.

    reference   vitsparse/backends/reference.py          torch   vitsparse/backends/portable.py
    cpu         kernels/cpu/attention*.{h,cpp},  bound by csrc/cpu/attention.cpp
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import portable, reference
from .backend import choose
from .checks import expect, offered
from .gradient import differentiate_as


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, backend: str = "auto", head_keep: Tensor | None = None
) -> Tensor:
    """softmax(scale q k^T) v for each image and head, contiguous [B, Tq, heads * head_dim].

    ``q``: [B, Tq, heads * head_dim]; ``k``, ``v``: [B, Tk, heads * head_dim], heads side by side. A batch of 1 is a
    constant that stands for every image. Views of one wide tensor are read in place.
    ``head_keep``: [B, heads], bool or numbers of which 0 means no. A head that an image does not keep gives zeros
    whatever its inputs, and the cpu backend skips its work (dynamic pruning). No gradient goes into ``head_keep``.
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
    keep = None if head_keep is None else _checked_keep(head_keep, images, heads, q)
    chosen = choose(backend, q.device.type, offered("attention", [q, k, v]))
    if chosen == "cpu":
        return torch.ops.vitsparse.attention(q, k, v, heads, scale, keep)
    return (reference if chosen == "reference" else portable).attention(q, k, v, heads, scale, keep)


def _checked_keep(head_keep: Tensor, images: int, heads: int, q: Tensor) -> Tensor:
    fits = head_keep.dim() == 2 and head_keep.shape == (images, heads)
    expect(fits, "attention: head_keep", [images, heads], list(head_keep.shape))
    expect(head_keep.device == q.device, "attention: device of head_keep", q.device, head_keep.device)
    return head_keep if head_keep.dtype == torch.bool else head_keep != 0


torch.library.define("vitsparse::attention",
                     "(Tensor q, Tensor k, Tensor v, int heads, float scale, Tensor? head_keep=None) -> Tensor")


@torch.library.register_fake("vitsparse::attention")
def _fake(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, head_keep: Tensor | None = None) -> Tensor:
    return q.new_empty((max(q.shape[0], k.shape[0], v.shape[0]), *q.shape[1:]))


differentiate_as("vitsparse::attention", reference.attention)
