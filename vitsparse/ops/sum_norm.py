"""``sum_norm``: the residual stream that a reader sees, and its normalisation. This file owns the contract.

    reference   vitsparse/backends/reference.py          torch   vitsparse/backends/portable.py
    cpu         kernels/cpu/sum_norm*.{h,cpp},  bound by csrc/cpu/sum_norm.cpp
    cuda        kernels/cuda/sum_norm*.{h,cuh,cu},  bound by csrc/cuda/sum_norm.cpp
    triton      kernels/triton/sum_norm.py,  bound by vitsparse/ops/triton.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import portable, reference
from .backend import choose
from .checks import check_senders, offered
from .gradient import differentiate_as


def sum_norm(
    senders: Sequence[Tensor], offset: Tensor | None, eps: float, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """r = offset + sum of ``senders``, and r normalised over its last dimension; both contiguous [B, T, D].

    ``senders``: at least one tensor [B, T, D]; ``offset``: [T, D] or None. The norm is LayerNorm without its affine
    part, (r - mean) / sqrt(var + eps) with the biased variance: scale and shift belong to the product that follows.
    Raises :class:`~vitsparse.errors.InputError` for shapes or dtypes that do not fit.
    """
    senders = list(senders)
    check_senders("sum_norm", senders, offset)
    tensors = [*senders, *([] if offset is None else [offset])]
    chosen = choose(backend, senders[0].device.type, offered("sum_norm", tensors, backend))
    if chosen in ("cpu", "cuda"):
        return torch.ops.vitsparse.sum_norm(senders, offset, eps)
    if chosen == "triton":
        return torch.ops.vitsparse.sum_norm_triton(senders, offset, eps)
    return (reference if chosen == "reference" else portable).sum_norm(senders, offset, eps)


torch.library.define("vitsparse::sum_norm", "(Tensor[] senders, Tensor? offset, float eps) -> (Tensor, Tensor)")


@torch.library.register_fake("vitsparse::sum_norm")
def _fake(senders: Sequence[Tensor], offset: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    return senders[0].new_empty(senders[0].shape), senders[0].new_empty(senders[0].shape)


differentiate_as("vitsparse::sum_norm", reference.sum_norm)
