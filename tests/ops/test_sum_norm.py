"""sum_norm: every backend and instruction set against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.ops.kernels import HERE, error, needs_cpu_ops, opcheck_reads_grad, poison
from vitsparse.backends import reference
from vitsparse.errors import InputError
from vitsparse.ops.cpu_isa import using_cpu_isa
from vitsparse.ops.sum_norm import sum_norm

pytestmark = needs_cpu_ops
EPS = 1e-6


def draw(count: int, images: int, tokens: int, width: int, offset: bool, shift: float = 0.0):
    generator = torch.Generator().manual_seed(count + 3 * images + 7 * tokens + 11 * width)
    senders = [torch.randn(images, tokens, width, generator=generator) + shift for _ in range(count)]
    return senders, torch.randn(tokens, width, generator=generator) if offset else None


def exactly(senders, offset):
    return reference.sum_norm([s.double() for s in senders], None if offset is None else offset.double(), EPS)


@pytest.mark.parametrize("level", HERE)
@settings(max_examples=30)
@given(count=st.integers(1, 5), images=st.integers(1, 3), tokens=st.integers(1, 10), width=st.integers(2, 70),
       offset=st.booleans())
@example(2, 1, 65, 256, True).via("the usual size")
@example(40, 1, 3, 33, False).via("many senders")
def test_cpu_equals_the_reference(level, count, images, tokens, width, offset):
    senders, constant = draw(count, images, tokens, width, offset)
    total, normed = exactly(senders, constant)
    with using_cpu_isa(level):
        poison(total.shape)
        result = sum_norm(senders, constant, EPS, "cpu")
    assert error(result[0], total) <= 1e-6
    assert error(result[1], normed) <= 2e-6 * max(1, 1 / exactly(senders, constant)[0].std(-1).min().item())


@pytest.mark.parametrize("level", HERE)
def test_the_variance_does_not_cancel(level):
    """A mean 3000 times the deviation: E[r^2] - E[r]^2 in float32 would be off by its own size."""
    senders, _ = draw(1, 1, 4, 100, False, shift=3000)
    with using_cpu_isa(level):
        assert error(sum_norm(senders, None, EPS, "cpu")[1], exactly(senders, None)[1]) <= 5e-4


def test_a_constant_row_is_normalised_to_zero():
    for backend in ("cpu", "torch", "reference"):
        assert not sum_norm([torch.full((1, 2, 16), 3.0)], None, EPS, backend)[1].any()


def test_views_are_read_in_place_and_left_alone():
    wide = torch.randn(2, 5, 24)
    before, parts = wide.clone(), list(wide.split(8, dim=2))
    total, _ = sum_norm(parts, None, EPS, "cpu")
    assert torch.allclose(total, sum(parts[1:], parts[0]), atol=1e-6)
    assert torch.equal(wide, before)


@pytest.mark.parametrize("offset", [True, False])
def test_portable_equals_the_reference(offset):
    senders, constant = draw(3, 2, 4, 6, offset)
    senders, constant = [s.double() for s in senders], None if constant is None else constant.double()
    for one, other in zip(sum_norm(senders, constant, EPS, "torch"), exactly(senders, constant), strict=True):
        assert error(one, other) <= 1e-13


@opcheck_reads_grad
@pytest.mark.parametrize("offset", [True, False])
def test_gradient_and_registration(offset):
    senders, constant = draw(3, 2, 3, 5, offset)
    inputs = [x.requires_grad_() for x in [*senders, *([constant] if offset else [])]]
    torch.library.opcheck(torch.ops.vitsparse.sum_norm.default, (senders, constant, EPS))

    def loss(backend):
        total, normed = sum_norm(senders, constant, EPS, backend)
        return total.square().sum() + (normed * torch.arange(5)).sum()

    for one, other in zip(torch.autograd.grad(loss("cpu"), inputs), torch.autograd.grad(loss("reference"), inputs),
                          strict=True):
        assert error(one, other.double()) <= 1e-5


def test_arguments_that_do_not_fit_are_refused():
    x = torch.randn(2, 3, 4)
    for arguments, where in ((([], None), "senders"), (([x, x[:1]], None), "senders"), (([x[0]], None), "senders"),
                             (([x], torch.zeros(4)), "offset"), (([x, x.double()], None), "dtype")):
        with pytest.raises(InputError, match=f"sum_norm: {where}"):
            sum_norm(*arguments, EPS)
    for senders, offset in (([x, x[:1]], None), ([x], torch.zeros(2, 4)), ([x[0]], None)):
        with pytest.raises(RuntimeError, match="expected"):
            torch.ops.vitsparse.sum_norm(senders, offset, EPS)
