"""qkv_attention on CUDA: fused where a block can hold it and in two launches elsewhere, against float64."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import error
from vitsparse.backends import portable, reference

AT = [(75, torch.float16), (80, torch.float16), (80, torch.bfloat16), (80, torch.float32)]
SHAPES = [  # images, heads, width of a head, tokens, width of the input
    (1, 2, 32, 65, 96), (2, 2, 32, 17, 64), (1, 1, 64, 65, 40), (1, 2, 20, 33, 100), (1, 1, 32, 197, 64),
    (1, 1, 64, 128, 64), (2, 3, 5, 7, 9), (3, 1, 1, 1, 1), (1, 1, 48, 16, 200),
]
TILED = [(1, 2, 64, 140, 40), (1, 1, 128, 20, 48), (1, 1, 80, 65, 33)]  # too much for the registers of a warp


@pytest.fixture(params=AT, ids=lambda at: f"{at[0]}-{at[1]}".replace("torch.", ""))
def at(request):
    return request.param


def operands(shape, dtype, device):
    """q and k of a size that makes some keys matter much more than others."""
    images, heads, head_dim, tokens, inputs = shape
    x, weight = torch.randn(images, tokens, inputs), torch.randn(3 * heads * head_dim, inputs) * inputs**-0.5
    return [t.to(dtype).to(device) for t in (x, weight, torch.randn(len(weight)))]


def check(ops_on, level, operands, heads, keep=None, slack=1e-3):
    """At most twice the error of plain torch in the same dtype."""
    (x, weight, bias), arguments = operands, (heads, 0.5, keep)
    double = None if bias is None else bias.double()
    exact = reference.qkv_attention(x.double(), weight.double(), double, *arguments)
    with ops_on.at_level(level):
        out = ops_on.qkv_attention(x, weight, bias, *arguments)
    plain = error(portable.qkv_attention(x, weight, bias, *arguments), exact, at_least=1e-3)
    assert error(out, exact, at_least=1e-3) <= (1e-5 if x.dtype == torch.float32 else 2 * plain + slack)
    return out


@pytest.mark.parametrize("shape", SHAPES + TILED)
def test_shapes(ops_on, at, shape):
    level, dtype = at
    x, weight, bias = operands(shape, dtype, ops_on.device)
    with ops_on.seed(sum(shape)):
        check(ops_on, level, (x, weight, bias if sum(shape) % 4 else None), shape[1])


@pytest.mark.parametrize("seed", range(4))
def test_random_shapes(ops_on, at, seed):
    level, dtype = at
    generator = torch.Generator().manual_seed(100 * level + seed)
    shape = [int(torch.randint(1, most, (), generator=generator)) for most in (3, 3, 70, 90, 100)]
    with ops_on.seed(seed):
        check(ops_on, level, operands(shape, dtype, ops_on.device), shape[1])


def test_memory_of_any_kind(ops_on, at):
    """Rows of something wider, at even and odd addresses, with dense rows and without."""
    level, dtype = at
    x, weight, bias = operands((2, 2, 8, 20, 48), dtype, ops_on.device)
    for start in (0, 1, 2, 8):
        wide, tall = (torch.randn(*t.shape[:-1], 67, device=ops_on.device).to(dtype) for t in (x, weight))
        wide[..., start : start + 48], tall[..., start : start + 48] = x, weight
        check(ops_on, level, (wide[..., start : start + 48], weight, bias), 2)
        check(ops_on, level, (x, tall[..., start : start + 48], bias), 2)
    check(ops_on, level, (x.transpose(1, 2).contiguous().transpose(1, 2), weight.T.contiguous().T, bias), 2)
    check(ops_on, level, (x[:1].expand(2, -1, -1), weight, bias[:1].expand(48)), 2)


@pytest.mark.parametrize("shape", [(3, 4, 12, 20, 24), (2, 2, 64, 130, 16)], ids=["fused", "tiled"])
def test_heads_that_an_image_does_not_keep_give_zeros(ops_on, at, shape):
    level, dtype = at
    images, heads, head_dim = shape[:3]
    keep = torch.rand(images, heads, generator=torch.Generator().manual_seed(1)) < 0.5
    assert 0 < keep.sum() < keep.numel()
    out = check(ops_on, level, operands(shape, dtype, ops_on.device), heads, keep.to(ops_on.device))
    assert not out.unflatten(2, (heads, head_dim)).transpose(1, 2)[~keep.to(ops_on.device)].any()


def test_float16_sums(ops_on):
    """Products of 32 inputs each add up in float16: less exact than plain torch, not by much, and not the same bits."""
    x, weight, bias = operands((1, 2, 32, 65, 256), torch.float16, ops_on.device)
    exactly = check(ops_on, 80, (x, weight, bias), 2)
    with ops_on.half_accumulate():
        roughly = check(ops_on, 80, (x, weight, bias), 2, slack=4e-3)
        assert not torch.equal(roughly, exactly)
        check(ops_on, 75, (x, weight, bias), 2)
        check(ops_on, 80, operands((1, 1, 32, 150, 64), torch.float16, ops_on.device), 1, slack=4e-3)


@pytest.mark.parametrize("limit", [25, 32, 48])
def test_what_a_block_cannot_hold_takes_two_launches(ops_on, at, limit):
    """The same result for any amount of shared memory (KB) that the linear op can live with."""
    level, dtype = at
    with ops_on.shared_limit(limit * 1024):
        check(ops_on, level, operands((1, 1, 32, 65, 64), dtype, ops_on.device), 1)


def test_what_does_not_fit_is_refused(ops_on):
    x, weight, bias = operands((2, 2, 4, 5, 6), torch.float16, ops_on.device)
    for wrong in ((x, weight, bias, 0), (x, weight, bias, 3), (x, weight[:, 1:], bias, 2), (x, weight, bias[1:], 2),
                  (x[0], weight, bias, 2), (x, weight.float(), bias, 2), (x, weight[:0], bias[:0], 2)):
        with pytest.raises(RuntimeError, match="expected"):
            ops_on.qkv_attention(*wrong, 0.5)
    with pytest.raises(RuntimeError, match="head_keep: expected bool"):
        ops_on.qkv_attention(x, weight, bias, 2, 0.5, torch.ones(2, 2, device=ops_on.device))
    with pytest.raises(RuntimeError, match="at most 128 columns, found 129"):
        ops_on.qkv_attention(x, torch.zeros(387, 6, device=ops_on.device).half(), None, 1, 0.5)
    assert ops_on.qkv_attention(x[:0], weight, bias, 2, 0.5).shape == (0, 5, 8)
