"""apply_pattern on CUDA: against float64, at each level and dtype, from ragged and unaligned memory."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import error
from vitsparse.backends import reference

AT = [(75, torch.float16), (80, torch.float16), (80, torch.bfloat16), (80, torch.float32)]
SHAPES = [  # images, heads, width of a head, queries, keys
    (2, 3, 32, 65, 65), (1, 2, 5, 1, 9), (2, 1, 40, 70, 3), (1, 2, 64, 17, 130), (1, 1, 130, 33, 64),
    (2, 2, 8, 129, 16), (3, 1, 1, 2, 1),
]


@pytest.fixture(params=AT, ids=lambda at: f"{at[0]}-{at[1]}".replace("torch.", ""))
def at(request):
    return request.param


def operands(shape, dtype, device):
    images, heads, head_dim, queries, keys = shape
    pattern = torch.softmax(torch.randn(heads, queries, keys), -1).to(dtype)
    return pattern.to(device), torch.randn(images, keys, heads * head_dim).to(dtype).to(device)


def check(ops_on, pattern, v, seed=0):
    exact = reference.apply_pattern(pattern.double(), v.double())
    with ops_on.seed(seed):
        out = ops_on.apply_pattern(pattern, v)
    plain = error(reference.apply_pattern(pattern, v), exact)
    assert error(out, exact) <= (1e-5 if v.dtype == torch.float32 else 2 * plain + 1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(ops_on, at, shape):
    level, dtype = at
    with ops_on.at_level(level):
        check(ops_on, *operands(shape, dtype, ops_on.device), seed=SHAPES.index(shape))


def test_memory_of_any_kind(ops_on, at):
    """Values that are columns of something wider, at odd addresses; one image's values for a batch of one."""
    level, dtype = at
    pattern, v = operands((2, 2, 24, 20, 20), dtype, ops_on.device)
    wide = torch.randn(2, 23, 101, device=ops_on.device).to(dtype)
    for columns in (slice(3, 51), slice(16, 64)):
        wide[:, 1:21, columns] = v
        with ops_on.at_level(level):
            check(ops_on, pattern, wide[:, 1:21, columns])
            check(ops_on, pattern[:, ::2], wide[:1, 1:21, columns], seed=1)


def test_random_shapes(ops_on, at):
    level, dtype = at
    generator = torch.Generator().manual_seed(level)
    for seed in range(4):
        shape = [int(torch.randint(1, most, (), generator=generator)) for most in (3, 4, 70, 70, 90)]
        with ops_on.at_level(level):
            check(ops_on, *operands(shape, dtype, ops_on.device), seed)


def test_what_does_not_fit_is_refused(ops_on):
    pattern, v = operands((1, 2, 4, 5, 5), torch.float16, ops_on.device)
    for wrong in ((pattern[:, :, :4], v), (pattern[:0], v), (pattern.float(), v), (pattern, v[..., :7])):
        with pytest.raises(RuntimeError, match="pattern: expected"):
            ops_on.apply_pattern(*wrong)
    assert ops_on.apply_pattern(pattern, v[:0]).shape == (0, 5, 8)
