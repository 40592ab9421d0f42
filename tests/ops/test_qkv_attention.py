"""qkv_attention: contract, gradient and backends on CPU tensors; the kernels for GPUs: tests/cuda, tests/triton."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import error
from vitsparse.backends import reference
from vitsparse.errors import InputError
from vitsparse.ops.qkv_attention import qkv_attention


def draw(images=2, tokens=5, inputs=6, heads=3, head_dim=4):
    generator = torch.Generator().manual_seed(images + 3 * tokens)
    shapes = ((images, tokens, inputs), (3 * heads * head_dim, inputs), (3 * heads * head_dim,))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("backend", ["reference", "torch", "auto"])
def test_it_is_a_product_and_an_attention(backend, with_bias):
    x, weight, bias = draw()
    keep = torch.tensor([[True, False, True], [False, False, True]])
    qkv = x @ weight.T + (bias if with_bias else 0)
    for kept in (None, keep, keep.int()):
        exact = reference.attention(*qkv.split(12, dim=2), 3, 0.5, None if kept is None else kept != 0)
        found = qkv_attention(x, weight, bias if with_bias else None, 3, 0.5, backend, kept)
        assert error(found, exact) <= 1e-13
        assert found.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_strides(dtype):
    x, weight, bias = (t.to(dtype) for t in draw())
    exact = reference.qkv_attention(x.double(), weight.double(), bias.double(), 3, 0.5)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    found = qkv_attention(turned, weight.T.contiguous().T, bias, 3, 0.5)
    assert found.dtype == dtype
    assert error(found, exact) <= 4 * torch.finfo(dtype).eps


def test_gradient_reaches_every_operand():
    x, weight, bias = (t.requires_grad_() for t in draw(1, 3, 2, 2, 2))
    keep = torch.tensor([[True, False]])
    for kept in (None, keep):
        torch.autograd.gradcheck(lambda *t, kept=kept: qkv_attention(*t, 2, 0.5, head_keep=kept), (x, weight, bias))


def test_what_tracing_sees():
    """The shape that the op announces is the one that backends make; it has no kernel for CPU tensors of its own."""
    x, weight, bias = (t.to("meta") for t in draw())
    found = torch.ops.vitsparse.qkv_attention(x, weight, bias, 3, 0.5)
    assert found.shape == qkv_attention(*draw(), 3, 0.5).shape
    with pytest.raises(NotImplementedError, match="vitsparse::qkv_attention"):
        torch.ops.vitsparse.qkv_attention(*draw(), 3, 0.5)


def test_arguments_that_do_not_fit_are_refused():
    x, weight, bias = draw()
    for arguments, where in (((x[0], weight, bias, 3), "x"), ((x[:, :0], weight, bias, 3), "x"),
                             ((x, weight[:, 1:], bias, 3), "weight"), ((x, weight[1:], bias, 3), "weight"),
                             ((x, weight[:0], bias[:0], 3), "weight"), ((x, weight, bias[1:], 3), "bias"),
                             ((x, weight, bias, 5), "weight"), ((x, weight, bias, 0), "heads"),
                             ((x, weight.float(), bias, 3), "dtype")):
        with pytest.raises(InputError, match=f"qkv_attention: {where}"):
            qkv_attention(*arguments, 0.5)
    for keep in (torch.ones(3, 2), torch.ones(1, 3), torch.ones(4)):
        with pytest.raises(InputError, match="qkv_attention: head_keep"):
            qkv_attention(x, weight, bias, 3, 0.5, head_keep=keep)
    for backend in ("cpu", "cuda"):
        with pytest.raises(InputError, match=f"backend '{backend}' cannot run here"):
            qkv_attention(x.float(), weight.float(), bias.float(), 3, 0.5, backend)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gradient_and_registration_on_a_gpu(backend):
    op = torch.ops.vitsparse.qkv_attention if backend == "cuda" else torch.ops.vitsparse.qkv_attention_triton
    for keep in (None, torch.tensor([[True, False, True], [False, False, True]], device="cuda")):
        inputs = [t.float().cuda().requires_grad_() for t in draw()]
        torch.library.opcheck(op.default, (*inputs, 3, 0.5, keep))
        found = torch.autograd.grad(qkv_attention(*inputs, 3, 0.5, backend, keep).square().sum(), inputs)
        exact = torch.autograd.grad(reference.qkv_attention(*inputs, 3, 0.5, keep).square().sum(), inputs)
        for one, other in zip(found, exact, strict=True):
            assert error(one, other.double()) <= 1e-4


@pytest.mark.gpu
def test_wide_heads_are_refused_by_cuda_by_name_and_run_elsewhere():
    x, weight, bias = (t.float().cuda() for t in draw(1, 5, 8, 1, 130))
    with pytest.raises(InputError, match="columns of a head, backend cuda"):
        qkv_attention(x, weight, bias, 1, 0.1, "cuda")
    exact = reference.qkv_attention(x.double(), weight.double(), bias.double(), 1, 0.1)
    assert error(qkv_attention(x, weight, bias, 1, 0.1), exact) <= 1e-4
