"""Every op of the GPU backends, as torch sees it: schema, fake tensors, autograd and tracing (``opcheck``)."""

from __future__ import annotations

import pytest
import torch

import vitsparse.ops.apply_pattern
import vitsparse.ops.attention
import vitsparse.ops.linear
import vitsparse.ops.mlp
import vitsparse.ops.noop
import vitsparse.ops.qkv_attention
import vitsparse.ops.sum_norm
import vitsparse.ops.triton  # noqa: F401 - schemas are registered by importing them
from tests.gpu.rig import DEVICE, DTYPES, REHEARSAL, need
from tests.ops.kernels import opcheck_reads_grad
from vitsparse.backends import native

pytestmark = pytest.mark.gpu

T, D, HEADS = 17, 48, 3


def arguments(op: str, dtype: torch.dtype) -> tuple:
    """Arguments of an op: two images, seventeen tokens, three heads of sixteen."""
    def some(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape) / shape[-1] ** 0.5).to(DEVICE, dtype)

    x = some(2, T, D)
    match op:
        case "noop":
            return (x,)
        case "linear":
            return x, some(32, D), some(32), "gelu"
        case "attention":
            return some(2, T, D), some(2, T, D), some(2, T, D), HEADS, 0.25, None
        case "qkv_attention":
            return x, some(3 * D, D), some(3 * D), HEADS, 0.25, None
        case "sum_norm":
            return [x, some(2, T, D)], some(T, D), 1e-6
        case "apply_pattern":
            return some(HEADS, T, T).softmax(-1), x
        case "mlp":
            return [x, some(2, T, D)], some(T, D), 1e-6, some(64, D), some(64), some(D, 64), some(D)
    raise ValueError(op)


OPS = ("noop", "linear", "attention", "sum_norm", "apply_pattern") + (() if REHEARSAL else ("qkv_attention", "mlp"))


@opcheck_reads_grad
@pytest.mark.parametrize("dtype", ["float32"] if REHEARSAL else DTYPES)
@pytest.mark.parametrize("suffix", [""] if REHEARSAL else ["", "_triton"])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op, suffix, dtype):
    need("triton" if suffix else "cpu" if REHEARSAL else "cuda", DTYPES[dtype])
    if op == "noop" and DTYPES[dtype] == torch.bfloat16:
        dtype = "float16"  # the template knows no other
    if not suffix:
        assert native.available("cpu" if REHEARSAL else "cuda")
    given = arguments(op, DTYPES[dtype])
    torch.library.opcheck(getattr(torch.ops.vitsparse, f"{op}{suffix}").default, given)
    leaves = [value.requires_grad_() if isinstance(value, torch.Tensor) else value for value in given]
    torch.library.opcheck(getattr(torch.ops.vitsparse, f"{op}{suffix}").default, tuple(leaves))
