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


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, backend: str = "auto") -> Tensor:
    """softmax(scale q k^T) v for each image and head, contiguous [B, Tq, heads * head_dim].

    ``q``: [B, Tq, heads * head_dim]; ``k``, ``v``: [B, Tk, heads * head_dim], heads side by side. A batch of 1 is a
    constant that stands for every image. Views of one wide tensor are read in place.
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
    chosen = choose(backend, q.device.type, offered("attention", [q, k, v]))
    if chosen == "cpu":
        return torch.ops.vitsparse.attention(q, k, v, heads, scale)
    return (reference if chosen == "reference" else portable).attention(q, k, v, heads, scale)


torch.library.define("vitsparse::attention", "(Tensor q, Tensor k, Tensor v, int heads, float scale) -> Tensor")


@torch.library.register_fake("vitsparse::attention")
def _fake(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    return q.new_empty((max(q.shape[0], k.shape[0], v.shape[0]), *q.shape[1:]))


differentiate_as("vitsparse::attention", reference.attention)
