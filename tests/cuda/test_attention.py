"""attention on CUDA: against float64, at each level and dtype, from ragged and unaligned memory."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import error
from vitsparse.backends import portable, reference

AT = [(75, torch.float16), (80, torch.float16), (80, torch.bfloat16), (80, torch.float32)]
SHAPES = [  # images, heads, width of a head, queries, keys
    (2, 4, 32, 65, 65), (1, 2, 16, 16, 16), (1, 1, 64, 50, 197), (2, 1, 128, 33, 70), (1, 2, 33, 9, 129),
    (2, 2, 12, 1, 64), (1, 3, 20, 140, 5), (1, 1, 65, 17, 130), (3, 1, 1, 2, 1), (1, 1, 40, 3, 256),
]


@pytest.fixture(params=AT, ids=lambda at: f"{at[0]}-{at[1]}".replace("torch.", ""))
def at(request):
    return request.param


def operands(shape, dtype, device, spread=1.5):
    images, heads, head_dim, queries, keys = shape
    return [(spread * torch.randn(images, tokens, heads * head_dim)).to(dtype).to(device)
            for tokens in (queries, keys, keys)]


def check(ops_on, level, qkv, heads, scale=0.3, keep=None):
    """At most twice the error of plain torch in the same dtype, or a hundred thousandth in float32."""
    exact = reference.attention(*(x.double() for x in qkv), heads, scale, keep)
    with ops_on.at_level(level):
        out = ops_on.attention(*qkv, heads, scale, keep)
    plain = error(portable.attention(*qkv, heads, scale, keep), exact, at_least=1e-3)
    assert error(out, exact, at_least=1e-3) <= (1e-5 if out.dtype == torch.float32 else 2 * plain + 1e-3)
    return out


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(ops_on, at, shape):
    level, dtype = at
    with ops_on.seed(SHAPES.index(shape)), ops_on.multiprocessors(SHAPES.index(shape) % 3 * 8 + 1):
        check(ops_on, level, operands(shape, dtype, ops_on.device), shape[1])


@pytest.mark.parametrize("seed", range(6))
def test_random_shapes(ops_on, at, seed):
    level, dtype = at
    generator = torch.Generator().manual_seed(100 * level + seed)
    shape = [int(torch.randint(1, most, (), generator=generator)) for most in (3, 4, 80, 90, 150)]
    with ops_on.seed(seed):
        check(ops_on, level, operands(shape, dtype, ops_on.device), shape[1])


def test_memory_of_any_kind(ops_on, at):
    """Columns of something wider, at even and odd addresses; rows of one image for all."""
    level, dtype = at
    wide = torch.randn(2, 23, 180, device=ops_on.device).to(dtype)
    for start, width in ((0, 48), (3, 48), (2, 30), (1, 33)):
        q, k, v = (wide[:, 1:21, start + i * width : start + (i + 1) * width] for i in range(3))
        check(ops_on, level, (q, k, v), 3)
        check(ops_on, level, (q, k[:1], v[:1]), 3)
    turned = wide.transpose(1, 2)[:, :, :20]  # no dense rows: copied
    check(ops_on, level, (turned, turned, turned), 4)


def test_heads_that_an_image_does_not_keep_give_zeros(ops_on, at):
    """Whatever their inputs: they are not read."""
    level, dtype = at
    q, k, v = operands((3, 4, 24, 37, 37), dtype, ops_on.device)
    keep = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    assert 0 < keep.sum() < keep.numel()
    keep = keep.to(ops_on.device)
    for x in (q, k, v):
        x.unflatten(2, (4, 24)).masked_fill_(~keep[:, None, :, None], float("nan"))
    for given in (keep, keep.T.contiguous().T):
        out = check(ops_on, level, (q, k, v), 4, keep=given)
        assert not out.unflatten(2, (4, 24)).transpose(1, 2)[~keep].any()
    assert not ops_on.attention(q, k, v, 4, 0.3, torch.zeros_like(keep)).any()


@pytest.mark.parametrize("spread", [0.0, 30.0, 200.0])
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_softmax_is_stable(ops_on, at, spread, scale):
    """Scores up to a million, of either sign, and scores all equal."""
    level, dtype = at
    q, k, _ = operands((1, 2, 32, 20, 150), dtype, ops_on.device, spread)
    v = torch.randn(k.shape, device=ops_on.device).to(dtype)
    check(ops_on, level, (q, k, v), 2, scale)


def test_nan_stays_in_its_row(ops_on, at):
    level, dtype = at
    q, k, v = operands((2, 1, 8, 5, 5), dtype, ops_on.device)
    q[1, 2, 3] = float("nan")
    with ops_on.at_level(level):
        out = ops_on.attention(q, k, v, 1, 1.0)
    assert out[1, 2].isnan().all()
    out[1, 2] = 0
    assert out.isfinite().all()


def test_what_does_not_fit_is_refused(ops_on):
    q, k, v = operands((2, 2, 4, 3, 4), torch.float16, ops_on.device)
    for wrong in ((q, k, v, 0), (q, k, v, 3), (q, k, v[:, 1:], 2), (q, k[..., :6], v, 2), (q, k.float(), v, 2),
                  (q[0], k, v, 2)):
        with pytest.raises(RuntimeError, match="expected"):
            ops_on.attention(*wrong, 0.5)
    for keep in (torch.ones(2, 2), torch.ones(1, 2, dtype=torch.bool), torch.ones(4, dtype=torch.bool)):
        with pytest.raises(RuntimeError, match="head_keep: expected bool"):
            ops_on.attention(q, k, v, 2, 0.5, keep.to(ops_on.device))
    wide = torch.randn(1, 3, 129, device=ops_on.device).half()
    with pytest.raises(RuntimeError, match="at most 128 columns, found 129"):
        ops_on.attention(wide, wide, wide, 1, 0.5)
    assert ops_on.attention(q[:0], k[:0], v[:0], 2, 0.5).shape == (0, 3, 8)
