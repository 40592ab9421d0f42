"""``mlp``: an MLP with the sum and norm that it reads. This file owns the contract.

    reference   vitsparse/backends/reference.py          torch   vitsparse/backends/portable.py
    cuda        kernels/cuda/mlp*.{h,cuh,cu},  bound by csrc/cuda/mlp.cpp
    triton      kernels/triton/mlp.py,  bound by vitsparse/ops/triton.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import portable, reference
from .backend import choose
from .checks import check_senders, expect, offered
from .gradient import differentiate_as


def mlp(  # noqa: PLR0913
    senders: Sequence[Tensor], offset: Tensor | None, eps: float, weight1: Tensor, bias1: Tensor, weight2: Tensor,
    bias2: Tensor | None = None, backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """gelu(norm(r) W1^T + b1) W2^T + b2, [B, T, N], and r = offset + sum of ``senders``, [B, T, D]; both contiguous.

    ``senders``: at least one tensor [B, T, D]; ``offset``: [T, D] or None; ``weight1``: [H, D]; ``bias1``: [H];
    ``weight2``: [N, H]; ``bias2``: [N] or None; the norm is that of :func:`~vitsparse.ops.sum_norm.sum_norm`, the GELU
    the exact one. Raises :class:`~vitsparse.errors.InputError` for shapes or dtypes that do not fit.
    """
    senders = list(senders)
    check_senders("mlp", senders, offset)
    _check_weights(senders[0].shape[2], weight1, bias1, weight2, bias2)
    constants = [x for x in (offset, weight1, bias1, weight2, bias2) if x is not None]
    chosen = choose(backend, senders[0].device.type, _offered([*senders, *constants], backend))
    arguments = (senders, offset, eps, weight1, bias1, weight2, bias2)
    if chosen == "cuda":
        return torch.ops.vitsparse.mlp(*arguments)
    if chosen == "triton":
        return torch.ops.vitsparse.mlp_triton(*arguments)
    return (reference if chosen == "reference" else portable).mlp(*arguments)


def _offered(tensors: Sequence[Tensor], backend: str) -> tuple[str, ...]:
    """As usual, but on a CPU the op's parts are fast enough one by one."""
    return tuple(name for name in offered("mlp", tensors, backend) if name != "cpu")


def _check_weights(width: int, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor | None) -> None:
    expect(weight1.dim() == 2 and weight1.shape[1] == width, "mlp: weight1", f"[H, {width}]", list(weight1.shape))
    hidden = weight1.shape[0]
    expect(hidden >= 1, "mlp: weight1", "at least one hidden unit", hidden)
    expect(bias1.shape == (hidden,), "mlp: bias1", [hidden], list(bias1.shape))
    expect(weight2.dim() == 2 and weight2.shape[1] == hidden, "mlp: weight2", f"[N, {hidden}]", list(weight2.shape))
    if bias2 is not None:
        expect(bias2.shape == weight2.shape[:1], "mlp: bias2", list(weight2.shape[:1]), list(bias2.shape))


torch.library.define(
    "vitsparse::mlp",
    "(Tensor[] senders, Tensor? offset, float eps, Tensor weight1, Tensor bias1, Tensor weight2, Tensor? bias2)"
    " -> (Tensor, Tensor)")


@torch.library.register_fake("vitsparse::mlp")
def _fake(
    senders: Sequence[Tensor], offset: Tensor | None, eps: float, weight1: Tensor, bias1: Tensor, weight2: Tensor,
    bias2: Tensor | None,
) -> tuple[Tensor, Tensor]:
    first = senders[0]
    return first.new_empty((*first.shape[:2], weight2.shape[0])), first.new_empty(first.shape)


differentiate_as("vitsparse::mlp", reference.mlp)
