"""``linear``: an affine map of tokens with an optional GELU. This file owns the contract.

    reference   vitsparse/backends/reference.py          torch   vitsparse/backends/portable.py
    cpu         kernels/cpu/linear*.{h,cpp},  bound by csrc/cpu/linear.cpp
    cuda        kernels/cuda/linear*.{h,cuh,cu},  bound by csrc/cuda/linear.cpp
    triton      kernels/triton/linear.py,  bound by vitsparse/ops/triton.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import native, portable, reference
from .backend import choose
from .checks import expect, offered
from .gradient import differentiate_as

ACTIVATIONS = ("none", "gelu")


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none", backend: str = "auto"
) -> Tensor:
    """activation(x W^T + b), contiguous [..., N].

    ``x``: [..., K]; ``weight``: [N, K]; ``bias``: [N], or [T, N] with one bias for each token of an ``x`` [..., T, K],
    or None; ``activation``: "none" or "gelu" (the exact one, x Phi(x)).
    Raises :class:`~vitsparse.errors.InputError` for shapes, dtypes or names that do not fit.
    """
    expect(x.dim() >= 1, "linear: x", "[..., K]", list(x.shape))
    fits = weight.dim() == 2 and weight.shape[1] == x.shape[-1]
    expect(fits, "linear: weight", f"[N, {x.shape[-1]}]", list(weight.shape))
    _check_rest(x, weight.shape[0], bias, activation)
    tensors = [x, weight, *([] if bias is None else [bias])]
    chosen = choose(backend, x.device.type, offered("linear", tensors, backend))
    if chosen in ("cpu", "cuda"):
        return torch.ops.vitsparse.linear(x, weight, bias, activation)
    if chosen == "triton":
        return torch.ops.vitsparse.linear_triton(x, weight, bias, activation)
    return (reference if chosen == "reference" else portable).linear(x, weight, bias, activation)


def pack_linear(weight: Tensor) -> Tensor:
    """A float32 weight [N, K] in the layout of the CPU kernels: a vector, the same on each machine."""
    expect(weight.dim() == 2 and weight.dtype == torch.float32, "pack_linear: weight", "float32 [N, K]",
           f"{weight.dtype} {list(weight.shape)}")
    choose("cpu", weight.device.type)
    return torch.from_numpy(native.core().pack_linear(weight.detach().numpy()))


def linear_packed(
    x: Tensor, packed: Tensor, out_features: int, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """:func:`linear` on the CPU backend with a weight packed beforehand by :func:`pack_linear`; no gradient."""
    _check_rest(x, out_features, bias, activation)
    choose("cpu", x.device.type, offered("linear_packed", [x, packed, *([] if bias is None else [bias])]))
    size = native.core().packed_size(out_features, x.shape[-1])
    expect(packed.shape == (size,), "linear_packed: packed", [size], list(packed.shape))
    return torch.ops.vitsparse.linear_packed(x, packed, out_features, bias, activation)


def _check_rest(x: Tensor, outputs: int, bias: Tensor | None, activation: str) -> None:
    expect(activation in ACTIVATIONS, "linear: activation", " or ".join(ACTIVATIONS), activation)
    if bias is not None:
        allowed = [[outputs], *([[x.shape[-2], outputs]] if x.dim() >= 2 else [])]
        expect(list(bias.shape) in allowed, "linear: bias", " or ".join(map(str, allowed)), list(bias.shape))


torch.library.define("vitsparse::linear", "(Tensor x, Tensor weight, Tensor? bias, str activation) -> Tensor")
torch.library.define("vitsparse::linear_packed",
                     "(Tensor x, Tensor packed, int out_features, Tensor? bias, str activation) -> Tensor")


@torch.library.register_fake("vitsparse::linear")
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.register_fake("vitsparse::linear_packed")
def _fake_packed(x: Tensor, packed: Tensor, out_features: int, bias: Tensor | None, activation: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


differentiate_as("vitsparse::linear", reference.linear)
