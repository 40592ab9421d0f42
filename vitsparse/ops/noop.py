"""``noop``: a copy of a tensor. Computes nothing of use; it is the living template for a new op.

This file owns the contract: shapes, checks, schema, what tracing sees, the gradient, and the dispatch. It needs torch
alone, so that the op can be traced and described on a machine where nothing is built. The kernels behind it:

    reference   vitsparse/backends/reference.py
    cpu         kernels/cpu/noop.cpp,    bound by csrc/cpu/noop.cpp
    cuda        kernels/cuda/noop.cu,    bound by csrc/cuda/noop.cpp
    triton      kernels/triton/noop.py

The C++ libraries register kernels only, under the schema defined here. Triton has its own op of the same schema,
because one op can hold only one kernel for CUDA tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import reference, triton
from .backend import choose

OFFERED = ("reference", "torch", "cpu", "cuda", "triton")


def noop(x: Tensor, backend: str = "auto") -> Tensor:
    """A contiguous copy of ``x``, of any shape.

    dtypes: float32 and float64 everywhere, float16 on GPUs. The gradient is the identity. Raises
    :class:`~vitsparse.errors.InputError` when a ``backend`` asked for by name cannot run on ``x``'s device.
    """
    chosen = choose(backend, x.device.type, OFFERED)
    if chosen in ("reference", "torch"):
        return reference.noop(x)
    return torch.ops.vitsparse.noop_triton(x) if chosen == "triton" else torch.ops.vitsparse.noop(x)


def _fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _backward(ctx, grad: Tensor) -> Tensor:
    return grad


for _name in ("vitsparse::noop", "vitsparse::noop_triton"):
    torch.library.define(_name, "(Tensor x) -> Tensor")
    torch.library.register_fake(_name, _fake)
    torch.library.register_autograd(_name, _backward)


@torch.library.impl("vitsparse::noop_triton", ("cpu", "cuda"))  # "cpu" is Triton's interpreter
def _triton(x: Tensor) -> Tensor:
    return triton.kernels("noop").noop(x)
