"""sum_norm on CUDA: sums and norms of any shape at any address, against float64."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import error
from vitsparse.backends import portable, reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
EPS = 1e-6


def draw(count, images, tokens, width, dtype, offset=True, shift=0.0):
    generator = torch.Generator().manual_seed(count + 3 * images + 7 * tokens + 11 * width)
    senders = [(torch.randn(images, tokens, width, generator=generator) + shift).to(dtype) for _ in range(count)]
    return senders, torch.randn(tokens, width, generator=generator).to(dtype) if offset else None


def compare(ops_on, senders, offset):
    """Both results at most twice as far from float64 as torch's own in this dtype; 1e-5 of the maximum in float32."""
    senders, offset = [s.cpu() for s in senders], None if offset is None else offset.cpu()
    exact = reference.sum_norm([s.double() for s in senders], None if offset is None else offset.double(), EPS)
    plain = portable.sum_norm(senders, offset, EPS)
    inputs = [s.to(ops_on.device) for s in senders], None if offset is None else offset.to(ops_on.device)
    for result, truth, other in zip(ops_on.sum_norm(*inputs, EPS), exact, plain, strict=True):
        assert result.dtype == senders[0].dtype
        assert result.is_contiguous()
        allowed = 1e-5 if result.dtype == torch.float32 else 2 * error(other, truth) + 1e-4
        assert error(result.cpu(), truth) <= allowed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "images", "tokens", "width"), [
    (1, 1, 1, 1), (2, 1, 65, 256), (3, 2, 5, 257), (9, 1, 3, 384), (17, 2, 2, 8), (2, 1, 2, 1024), (3, 1, 2, 1025),
    (2, 1, 2, 2000), (8, 3, 7, 100),
])
def test_shapes(ops_on, dtype, count, images, tokens, width):
    for offset in (True, False):
        compare(ops_on, *draw(count, images, tokens, width, dtype, offset))


@pytest.mark.parametrize("seed", range(6))
def test_random_shapes_and_schedules(ops_on, seed):
    pick = torch.Generator().manual_seed(seed)
    count, images, tokens, width = (int(torch.randint(1, most, (), generator=pick)) for most in (12, 4, 12, 1200))
    with ops_on.seed(seed), ops_on.multiprocessors(1 + 39 * (seed % 2)):
        compare(ops_on, *draw(count, images, tokens, width, DTYPES[seed % 3], offset=seed % 2 == 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [48, 49, 95, 96, 300])
def test_many_senders(ops_on, dtype, count):
    """Several launches round the sum between them, and are not worse than torch, which rounds at every addition."""
    compare(ops_on, *draw(count, 1, 3, 40, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_at_any_address(ops_on, dtype):
    wide = torch.randn(3, 6, 500, generator=torch.Generator().manual_seed(5)).to(dtype).to(ops_on.device)
    before = wide.clone()
    aligned, odd, late = wide[:, 1:, 8:200], wide[:, :5, 201:393], wide[:, 1:, 300:492]
    offset = torch.ones(5, 193, dtype=dtype, device=ops_on.device)[:, 1:]
    for senders in ([aligned], [odd], [aligned, odd, late]):
        result = ops_on.sum_norm(senders, offset, EPS)
        copies = ops_on.sum_norm([s.contiguous() for s in senders], offset.contiguous(), EPS)
        assert all(torch.equal(one, other) for one, other in zip(result, copies, strict=True))
    across = wide.transpose(1, 2)[:, :7]  # columns far apart: copied
    assert torch.equal(ops_on.sum_norm([across], None, EPS)[0], across)
    assert torch.equal(wide, before)


def test_the_variance_does_not_cancel(ops_on):
    senders, _ = draw(1, 1, 4, 100, torch.float32, shift=3000.0)
    exact = reference.sum_norm([s.double() for s in senders], None, EPS)[1]
    assert error(ops_on.sum_norm([s.to(ops_on.device) for s in senders], None, EPS)[1].cpu(), exact) <= 5e-4


def test_a_constant_row_is_normalised_to_zero(ops_on):
    assert not ops_on.sum_norm([torch.full((1, 2, 16), 3.0, device=ops_on.device)], None, EPS)[1].any()


def test_nothing_at_all(ops_on):
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        assert ops_on.sum_norm([torch.zeros(shape, device=ops_on.device)], None, EPS)[0].shape == shape


def test_arguments_that_do_not_fit_are_refused(ops_on):
    x = torch.randn(2, 3, 4, device=ops_on.device)
    for senders, offset in (([x, x[:1]], None), ([x], x[0, :2]), ([x[0]], None), ([x, x.half()], None)):
        with pytest.raises(RuntimeError, match="expected"):
            ops_on.sum_norm(senders, offset, EPS)
