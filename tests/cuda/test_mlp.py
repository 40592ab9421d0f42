"""The fused MLP on CUDA: every tile, slices, what does not fit, and any shape at any address, against float64."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import error
from vitsparse.backends import portable, reference

EPS = 1e-6
KINDS = [(75, torch.float16), (80, torch.float16), (80, torch.bfloat16), (80, torch.float32)]
kinds = pytest.mark.parametrize(("level", "dtype"), KINDS)


def draw(shape, hidden, outputs, count=2, offset=True, bias2=True):
    """Arguments of ``mlp`` in float32; shape: images, tokens, width."""
    generator = torch.Generator().manual_seed(sum(shape) + 3 * hidden + 7 * outputs + 11 * count)

    def randn(*size):
        return torch.randn(size, generator=generator)

    width = shape[2]
    return ([randn(*shape) for _ in range(count)], randn(*shape[1:]) if offset else None, EPS,
            randn(hidden, width) / width**0.5, randn(hidden), randn(outputs, hidden) / hidden**0.5,
            randn(outputs) if bias2 else None)


def cast(arguments, to):
    return tuple([x.to(to) for x in a] if isinstance(a, list) else a.to(to) if isinstance(a, torch.Tensor) else a
                 for a in arguments)


def compare(ops_on, arguments, factor=2.0):
    """Result and sum at most ``factor`` times as far from float64 as torch's own in this dtype; float32: 1e-5."""
    exact, plain = reference.mlp(*cast(arguments, torch.float64)), portable.mlp(*arguments)
    for result, truth, other in zip(ops_on.mlp(*cast(arguments, ops_on.device)), exact, plain, strict=True):
        allowed = 1e-5 if other.dtype == torch.float32 else factor * error(other, truth) + 1e-4
        assert error(result.cpu(), truth) <= allowed


@kinds
@pytest.mark.parametrize(("shape", "hidden", "outputs", "multiprocessors"), [
    ((1, 65, 64), 128, 64, 2),     # 64 rows a tile
    ((1, 65, 64), 256, 64, 3),     # 32
    ((1, 17, 64), 128, 64, 16),    # 16
    ((1, 17, 64), 1024, 64, 40),   # hidden units in slices
    ((2, 5, 96), 400, 256, 8),     # ragged slices
])
def test_tiles_and_slices(ops_on, level, dtype, shape, hidden, outputs, multiprocessors):
    with ops_on.at_level(level), ops_on.multiprocessors(multiprocessors):
        compare(ops_on, cast(draw(shape, hidden, outputs), dtype))


@kinds
@pytest.mark.parametrize(("shape", "hidden", "outputs"), [
    ((1, 1, 1), 1, 1), ((1, 3, 5), 7, 9), ((3, 7, 33), 65, 31), ((1, 16, 72), 136, 200), ((2, 9, 257), 130, 257),
    ((1, 5, 384), 70, 384), ((1, 2, 1024), 64, 512), ((1, 2, 768), 96, 768), ((1, 2, 1030), 64, 8),
])
def test_shapes(ops_on, level, dtype, shape, hidden, outputs):
    """Some do not fit into a tile and are computed step by step."""
    with ops_on.at_level(level):
        arguments = draw(shape, hidden, outputs, count=3, offset=hidden % 2 == 0, bias2=hidden % 3 == 0)
        compare(ops_on, cast(arguments, dtype))


@pytest.mark.parametrize("seed", range(8))
def test_random_shapes_and_schedules(ops_on, seed):
    pick = torch.Generator().manual_seed(seed)
    images, tokens, width, hidden, outputs, count = (
        int(torch.randint(1, most, (), generator=pick)) for most in (4, 20, 300, 300, 300, 12))
    level, dtype = KINDS[seed % 4]
    with ops_on.at_level(level), ops_on.seed(seed), ops_on.multiprocessors((1, 4, 40)[seed % 3]):
        compare(ops_on, cast(draw((images, tokens, width), hidden, outputs, count), dtype))


@pytest.mark.parametrize("level", [75, 80])
@pytest.mark.parametrize("multiprocessors", [1, 2])
def test_sums_in_half(ops_on, level, multiprocessors):
    """Less exact, but no worse than adding 64 products in float16 can be. Tiles of 16 rows wait for memory anyway."""
    arguments = cast(draw((1, 40, 256), 256, 256), torch.float16)
    with ops_on.at_level(level), ops_on.half_accumulate(), ops_on.multiprocessors(multiprocessors):
        compare(ops_on, arguments, factor=8)
        half = ops_on.mlp(*cast(arguments, ops_on.device))[0]
    with ops_on.at_level(level), ops_on.multiprocessors(multiprocessors):
        assert not torch.equal(half, ops_on.mlp(*cast(arguments, ops_on.device))[0])


@kinds
@pytest.mark.parametrize("multiprocessors", [1, 40])
def test_views_at_any_address(ops_on, level, dtype, multiprocessors):
    senders, offset, eps, w1, b1, w2, b2 = cast(cast(draw((2, 6, 40), 200, 48), dtype), ops_on.device)

    def aside(x):
        """The same numbers, an odd number of columns into wider rows."""
        wide = torch.full((*x.shape[:-1], x.shape[-1] + 9), float("nan"), dtype=dtype, device=ops_on.device)
        wide[..., 1:1 + x.shape[-1]] = x
        return wide[..., 1:1 + x.shape[-1]]

    with ops_on.at_level(level), ops_on.multiprocessors(multiprocessors):
        plain = ops_on.mlp(senders, offset, eps, w1, b1, w2, b2)
        moved = ops_on.mlp(list(map(aside, senders)), aside(offset), eps, aside(w1), aside(b1), aside(w2), aside(b2))
    assert all(torch.equal(one, other) for one, other in zip(plain, moved, strict=True))


@pytest.mark.parametrize("multiprocessors", [1, 40])
def test_many_senders(ops_on, multiprocessors):
    """The first ones are added up before; the hidden units then stay in one slice, which reads and writes the sum."""
    with ops_on.multiprocessors(multiprocessors):
        compare(ops_on, cast(draw((1, 5, 40), 500, 24, count=60), torch.float16))


def test_a_small_shared_memory(ops_on):
    with ops_on.shared_limit(30 * 1024):
        compare(ops_on, cast(draw((1, 5, 64), 96, 64), torch.float16))


def test_nothing_at_all(ops_on):
    senders, offset, *rest = cast(draw((1, 3, 8), 8, 8, offset=False), ops_on.device)
    out, total = ops_on.mlp([s[:0] for s in senders], offset, *rest)
    assert out.shape == total.shape == (0, 3, 8)


def test_arguments_that_do_not_fit_are_refused(ops_on):
    senders, offset, eps, w1, b1, w2, b2 = cast(draw((1, 3, 8), 8, 8), ops_on.device)
    for wrong in ((senders, offset, eps, w1[:, 1:], b1, w2, b2), (senders, offset, eps, w1, b1[1:], w2, b2),
                  (senders, offset, eps, w1, b1, w2[:, 1:], b2), (senders, offset, eps, w1, b1, w2, b2[1:]),
                  (senders, offset[1:], eps, w1, b1, w2, b2), (senders, offset, eps, w1.half(), b1, w2, b2)):
        with pytest.raises(RuntimeError, match="expected"):
            ops_on.mlp(*wrong)
