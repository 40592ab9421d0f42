"""apply_pattern: every backend and instruction set against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.ops.kernels import HERE, error, needs_cpu_ops, opcheck_reads_grad, poison
from vitsparse.backends import reference
from vitsparse.errors import InputError
from vitsparse.ops.apply_pattern import apply_pattern
from vitsparse.ops.cpu_isa import using_cpu_isa

pytestmark = needs_cpu_ops


def draw(images: int, queries: int, keys: int, heads: int, head_dim: int):
    generator = torch.Generator().manual_seed(images + 3 * queries + 7 * keys + 11 * heads + 13 * head_dim)
    pattern = torch.softmax(torch.randn(heads, queries, keys, generator=generator), dim=-1)
    return pattern, torch.randn(images, keys, heads * head_dim, generator=generator)


@pytest.mark.parametrize("level", HERE)
@settings(max_examples=30)
@given(images=st.integers(1, 3), queries=st.integers(1, 30), keys=st.integers(1, 40), heads=st.integers(1, 3),
       head_dim=st.integers(1, 40))
@example(2, 65, 65, 2, 32).via("65 tokens")
@example(1, 1, 17, 4, 5).via("only the class token asks")
def test_cpu_equals_the_reference(level, images, queries, keys, heads, head_dim):
    pattern, v = draw(images, queries, keys, heads, head_dim)
    exact = reference.apply_pattern(pattern.double(), v.double())
    with using_cpu_isa(level):
        poison(exact.shape)
        assert error(apply_pattern(pattern, v, "cpu"), exact) <= 1e-5


def test_a_uniform_pattern_is_the_mean_over_tokens():
    _, v = draw(2, 1, 6, 2, 5)
    result = apply_pattern(torch.full((2, 3, 6), 1 / 6), v, "cpu")
    assert torch.allclose(result, v.mean(1, keepdim=True).expand(2, 3, 10), atol=1e-6)


def test_portable_equals_the_reference():
    pattern, v = (x.double() for x in draw(2, 3, 6, 2, 5))
    assert error(apply_pattern(pattern, v, "torch"), reference.apply_pattern(pattern, v)) <= 1e-14


@opcheck_reads_grad
def test_gradient_and_registration():
    inputs = [x.detach().requires_grad_() for x in draw(2, 3, 4, 2, 3)]
    torch.library.opcheck(torch.ops.vitsparse.apply_pattern.default, tuple(inputs))
    found = torch.autograd.grad(apply_pattern(*inputs, "cpu").square().sum(), inputs)
    exact = torch.autograd.grad(reference.apply_pattern(*inputs).square().sum(), inputs)
    for one, other in zip(found, exact, strict=True):
        assert error(one, other.double()) <= 1e-5


def test_arguments_that_do_not_fit_are_refused():
    pattern, v = draw(2, 3, 4, 2, 3)
    for arguments, where in (((pattern[0], v), "pattern"), ((pattern, v[:, 1:]), "pattern"), ((pattern, v[0]), "v"),
                             ((pattern, v[..., 1:]), "heads"), ((pattern.double(), v), "dtype")):
        with pytest.raises(InputError, match=f"apply_pattern: {where}"):
            apply_pattern(*arguments)
    for call in ((pattern[0], v), (pattern, v[:, 1:]), (pattern, v[..., 1:]), (pattern[:0], v)):
        with pytest.raises(RuntimeError, match="expected"):
            torch.ops.vitsparse.apply_pattern(*call)
