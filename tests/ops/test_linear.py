"""linear: every backend and instruction set against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.ops.kernels import HERE, error, needs_cpu_ops, opcheck_reads_grad, poison
from vitsparse.backends import reference
from vitsparse.errors import InputError
from vitsparse.ops.cpu_isa import using_cpu_isa
from vitsparse.ops.linear import linear, linear_packed, pack_linear

pytestmark = needs_cpu_ops
BIASES = ("none", "shared", "per token")


def draw(images: int, tokens: int, inputs: int, outputs: int, bias: str):
    generator = torch.Generator().manual_seed(images + 3 * tokens + 7 * inputs + 11 * outputs)
    x = torch.randn(images, tokens, inputs, generator=generator)
    weight = 2 * torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    biases = {"none": None, "shared": torch.randn(outputs, generator=generator),
              "per token": torch.randn(tokens, outputs, generator=generator)}
    return x, weight, biases[bias]


@pytest.mark.parametrize("level", HERE)
@settings(max_examples=40)
@given(images=st.integers(1, 3), tokens=st.integers(1, 31), inputs=st.integers(1, 70), outputs=st.integers(1, 70),
       bias=st.sampled_from(BIASES), activation=st.sampled_from(["none", "gelu"]))
@example(1, 17, 64, 192, "shared", "none").via("one image of a tiny ViT")
@example(2, 65, 32, 257, "per token", "gelu").via("blocks of 13 rows, one column left over")
@example(1, 1, 1024, 33, "shared", "none").via("the class token alone")
@example(1, 65, 32, 256, "none", "none").via("a head's output: several tiles a task")
@example(5, 31, 5, 300, "per token", "gelu").via("shallow, wide, and a last group that is not full")
def test_cpu_equals_the_reference(level, images, tokens, inputs, outputs, bias, activation):
    x, weight, b = draw(images, tokens, inputs, outputs, bias)
    exact = reference.linear(x.double(), weight.double(), None if b is None else b.double(), activation)
    with using_cpu_isa(level):
        poison(exact.shape)
        assert error(linear(x, weight, b, activation, "cpu"), exact, at_least=1.0) <= 3e-6
        packed = pack_linear(weight)
        poison(exact.shape)
        assert torch.equal(linear_packed(x, packed, outputs, b, activation), linear(x, weight, b, activation, "cpu"))


@pytest.mark.parametrize("level", HERE)
def test_gelu_over_its_whole_range(level):
    """Through a product with one: the error stays near 1e-6, absolute below 1 and relative above, out to the limits."""
    x = torch.cat([torch.linspace(-8, 8, 160_001), torch.tensor([-1e30, -100, -0.0, 0, 100, 1e30, float("inf")])])
    with using_cpu_isa(level):
        y = linear(x[:, None], torch.ones(1, 1), None, "gelu", "cpu")[:, 0]
        assert linear(torch.tensor([[float("nan")]]), torch.ones(1, 1), None, "gelu", "cpu").isnan().all()
    exact = torch.nn.functional.gelu(x.double())
    assert ((y - exact)[:-1].abs() <= 1.5e-6 * exact[:-1].abs().clamp_min(1)).all()
    assert y[-1] == float("inf")


def test_the_packed_layout_is_panels_of_sixteen_outputs():
    weight = torch.arange(17 * 3, dtype=torch.float32).reshape(17, 3)
    packed = pack_linear(weight).reshape(2, 3, 16)
    assert torch.equal(packed[0], weight[:16].T)
    assert torch.equal(packed[1, :, 0], weight[16])
    assert not packed[1, :, 1:].any()


def test_large_products_are_split_over_threads():
    x, weight, bias = draw(4, 65, 256, 768, "shared")
    exact = reference.linear(x.double(), weight.double(), bias.double())
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            poison(exact.shape)
            assert error(linear(x, weight, bias, backend="cpu"), exact) <= 3e-6
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (4,), (2, 2, 3, 4)])
def test_any_number_of_leading_dimensions(shape):
    x, weight = torch.randn(shape), torch.randn(6, 4)
    assert torch.allclose(linear(x, weight, backend="cpu"), reference.linear(x, weight, None), atol=1e-5)


@pytest.mark.parametrize("level", HERE)
def test_a_product_over_nothing_is_the_bias(level):
    bias = torch.randn(40)
    with using_cpu_isa(level):
        poison((2, 3, 40))
        assert torch.equal(linear(torch.zeros(2, 3, 0), torch.zeros(40, 0), bias, backend="cpu"), bias.expand(2, 3, 40))


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("bias", BIASES)
def test_portable_equals_the_reference(bias, activation):
    arguments = [None if t is None else t.double() for t in draw(2, 5, 7, 6, bias)]
    assert error(linear(*arguments, activation, "torch"), reference.linear(*arguments, activation)) <= 1e-14


@opcheck_reads_grad
def test_gradient_and_registration():
    for bias in BIASES:
        arguments = [None if t is None else t.requires_grad_() for t in draw(2, 3, 4, 5, bias)]
        torch.library.opcheck(torch.ops.vitsparse.linear.default, (*arguments, "gelu"))
        given = [t for t in arguments if t is not None]
        found = torch.autograd.grad(linear(*arguments, "gelu", "cpu").square().sum(), given)
        exact = torch.autograd.grad(reference.linear(*arguments, "gelu").square().sum(), given)
        for one, other in zip(found, exact, strict=True):
            assert error(one, other.double()) <= 1e-5


def test_gradients_of_gradients():
    x, weight, bias = (t.requires_grad_() for t in draw(2, 3, 4, 5, "shared"))

    def second(backend):
        loss = linear(x, weight, bias, "gelu", backend).square().sum()
        first = torch.autograd.grad(loss, (x, weight), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight, bias))

    for one, other in zip(second("cpu"), second("reference"), strict=True):
        assert error(one, other.double()) <= 1e-5


def test_arguments_that_do_not_fit_are_refused():
    x, weight = torch.randn(2, 3, 4), torch.randn(5, 4)
    for arguments, where in (((x, weight.T), "weight"), ((x, weight, torch.zeros(4)), "bias"),
                             ((x, weight, torch.zeros(2, 5)), "bias"), ((x, weight, None, "relu"), "activation"),
                             ((x, weight.double()), "dtype")):
        with pytest.raises(InputError, match=f"linear: {where}"):
            linear(*arguments)
    with pytest.raises(InputError, match="linear_packed: packed"):
        linear_packed(x, pack_linear(weight), 17)
    with pytest.raises(InputError, match="cannot run here"):
        linear(x.double(), weight.double(), backend="cpu")


def test_the_kernel_itself_refuses_what_would_read_outside_memory():
    x, op = torch.randn(2, 3, 4), torch.ops.vitsparse
    for weight, bias in ((torch.randn(5, 3), None), (torch.randn(5, 4), torch.zeros(4)), (torch.randn(5), None)):
        with pytest.raises(RuntimeError, match="expected"):
            op.linear(x, weight, bias, "none")
    with pytest.raises(RuntimeError, match="float32"):
        op.linear(x.double(), x[0].double(), None, "none")
    with pytest.raises(RuntimeError, match="expected 64 packed values"):
        op.linear_packed(x, torch.zeros(63), 5, None, "none")
