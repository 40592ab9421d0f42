"""mlp: the contract, and the backends that run anywhere; tests/cuda and tests/triton have those with kernels."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.ops.kernels import error
from vitsparse.errors import InputError
from vitsparse.ops.linear import linear
from vitsparse.ops.mlp import mlp
from vitsparse.ops.sum_norm import sum_norm

EPS = 1e-6


def draw(dtype=torch.float64, offset=True, bias2=True):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    senders, constant = [randn(2, 5, 6) for _ in range(3)], randn(5, 6) if offset else None
    return senders, constant, EPS, randn(7, 6), randn(7), randn(4, 7), randn(4) if bias2 else None


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("bias2", [True, False])
def test_it_is_its_parts(backend, offset, bias2):
    senders, constant, eps, weight1, bias1, weight2, bias = arguments = draw(offset=offset, bias2=bias2)
    out, total = mlp(*arguments, backend)
    exact_total, normed = sum_norm(senders, constant, eps, "reference")
    exact = linear(linear(normed, weight1, bias1, "gelu", "reference"), weight2, bias, backend="reference")
    assert error(out, exact) <= 1e-13
    assert error(total, exact_total) <= 1e-13


def test_the_gradients_of_backends_agree():
    senders, *rest = draw()
    inputs = [x.requires_grad_() for x in (*senders, *(y for y in rest if isinstance(y, torch.Tensor)))]

    def gradients(backend):
        out, total = mlp(senders, *rest, backend)
        return torch.autograd.grad(out.square().sum() + total.sin().sum(), inputs)

    for one, other in zip(gradients("torch"), gradients("reference"), strict=True):
        assert error(one, other) <= 1e-12


def test_shapes_are_known_without_a_kernel():
    with FakeTensorMode():
        out, total = torch.ops.vitsparse.mlp(*draw(torch.float16))
    assert (out.shape, total.shape) == ((2, 5, 4), (2, 5, 6))
    assert out.dtype == total.dtype == torch.float16


def test_arguments_that_do_not_fit_are_refused():
    senders, offset, eps, w1, b1, w2, b2 = draw()
    weights = w1, b1, w2, b2
    for arguments, where in (
        (([], offset, eps, *weights), "senders"), (([*senders, offset], offset, eps, *weights), "senders"),
        ((senders, offset[1:], eps, *weights), "offset"), ((senders, offset, eps, w1[:, 1:], b1, w2, b2), "weight1"),
        ((senders, offset, eps, w1[:0], b1[:0], w2[:, :0], b2), "weight1"),
        ((senders, offset, eps, w1, b1[1:], w2, b2), "bias1"),
        ((senders, offset, eps, w1, b1, w2[:, 1:], b2), "weight2"),
        ((senders, offset, eps, w1, b1, w2, b2[1:]), "bias2"),
        ((senders, offset, eps, w1.float(), b1, w2, b2), "dtype"),
    ):
        with pytest.raises(InputError, match=f"mlp: {where}"):
            mlp(*arguments)
    for backend in ("cpu", "cuda"):
        with pytest.raises(InputError, match="cannot run here"):
            mlp(*draw(torch.float32), backend)
