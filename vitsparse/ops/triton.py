"""The ops of the Triton kernels, ``vitsparse::X_triton``: schema, fake and gradient of ``vitsparse::X``.

They are ops of their own because one op can hold only one kernel for CUDA tensors. "cpu" is Triton's interpreter.
Nothing here imports triton before one of them is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import reference, triton
from .gradient import differentiate_as


def _like_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _like_sum_norm(senders: Sequence[Tensor], offset: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    return senders[0].new_empty(senders[0].shape), senders[0].new_empty(senders[0].shape)


def _like_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, head_keep: Tensor | None = None
) -> Tensor:
    return q.new_empty((max(q.shape[0], k.shape[0], v.shape[0]), *q.shape[1:]))


def _like_qkv_attention(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, scale: float, head_keep: Tensor | None = None
) -> Tensor:
    return x.new_empty((*x.shape[:2], weight.shape[0] // 3))


def _like_mlp(
    senders: Sequence[Tensor], offset: Tensor | None, eps: float, weight1: Tensor, bias1: Tensor, weight2: Tensor,
    bias2: Tensor | None,
) -> tuple[Tensor, Tensor]:
    total = senders[0].new_empty(senders[0].shape)
    return total.new_empty((*total.shape[:2], weight2.shape[0])), total


def _like_apply_pattern(pattern: Tensor, v: Tensor) -> Tensor:
    return v.new_empty((v.shape[0], pattern.shape[1], v.shape[2]))


OPS = {
    "linear": ("(Tensor x, Tensor weight, Tensor? bias, str activation) -> Tensor", _like_linear),
    "sum_norm": ("(Tensor[] senders, Tensor? offset, float eps) -> (Tensor, Tensor)", _like_sum_norm),
    "attention": ("(Tensor q, Tensor k, Tensor v, int heads, float scale, Tensor? head_keep=None) -> Tensor",
                  _like_attention),
    "qkv_attention": ("(Tensor x, Tensor weight, Tensor? bias, int heads, float scale, Tensor? head_keep=None)"
                      " -> Tensor", _like_qkv_attention),
    "mlp": ("(Tensor[] senders, Tensor? offset, float eps, Tensor weight1, Tensor bias1, Tensor weight2,"
            " Tensor? bias2) -> (Tensor, Tensor)", _like_mlp),
    "apply_pattern": ("(Tensor pattern, Tensor v) -> Tensor", _like_apply_pattern),
}


def _kernel(name: str) -> Callable[..., Any]:
    """The launcher of op ``name``, on the device of its first tensor."""

    def run(*arguments: Any) -> Any:
        first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
        with torch.cuda.device_of(first):
            return getattr(triton.kernels(name), name)(*arguments)

    return run


def _gradient(name: str) -> Callable[..., Any]:
    return lambda *arguments: getattr(reference, name)(*arguments)  # looked up when it is needed


for _name, (_schema, _fake) in OPS.items():
    torch.library.define(f"vitsparse::{_name}_triton", _schema)
    torch.library.impl(f"vitsparse::{_name}_triton", ("cpu", "cuda"), _kernel(_name))
    torch.library.register_fake(f"vitsparse::{_name}_triton", _fake)
    differentiate_as(f"vitsparse::{_name}_triton", _gradient(_name))
