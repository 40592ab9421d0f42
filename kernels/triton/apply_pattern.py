"""apply_pattern: values weighted by a constant pattern. One program per image, head and block of queries."""

# ruff: noqa: PLR0913  (Triton kernels take pointers and strides one by one)
from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import tune
from .common import dense_columns, images_of, tile


@triton.jit
def apply_pattern_kernel(
    pattern_ptr, v_ptr, out_ptr, queries, keys, heads, pattern_head, pattern_row, v_image, v_row,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """out[b, i, h] = sum over keys j of pattern[h, i, j] v[b, j, h]."""
    image, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    row, d = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    real = (d < HEAD_DIM)[None, :]
    near_row = tl.minimum(row, queries - 1).to(tl.int64)
    patterns = pattern_ptr + head.to(tl.int64) * pattern_head + near_row[:, None] * pattern_row
    vs = v_ptr + image * v_image + (head * HEAD_DIM + d)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(0, keys, BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        weights = tl.load(patterns + key[None, :], mask=(key < keys)[None, :], other=0)
        v = tl.load(vs + key.to(tl.int64)[:, None] * v_row, mask=(key < keys)[:, None] & real, other=0)
        total = tl.dot(weights, v, total, input_precision="ieee")
    outs = out_ptr + ((image * queries + row)[:, None] * heads + head) * HEAD_DIM + d[None, :]
    tl.store(outs, total.to(out_ptr.dtype.element_ty), mask=(row < queries)[:, None] & real)


TILES = tuple(tune.tiles(BLOCK_M=m, BLOCK_N=n, num_warps=warps, num_stages=stages) for m, n, warps, stages in (
    (16, 32, 1, 3), (16, 16, 1, 3), (32, 32, 2, 3), (64, 16, 4, 3), (64, 32, 4, 3)))
EXACT_TILES = (tune.tiles(BLOCK_M=16, BLOCK_N=16, num_warps=4, num_stages=1),)


def apply_pattern(pattern: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """pattern [heads, Tq, Tk] times v [B, Tk, heads * head_dim] for each image and head; see the op's contract."""
    heads, queries, keys = pattern.shape
    out = v.new_empty((v.shape[0], queries, v.shape[2]))
    if out.numel() == 0:
        return out
    pattern, v, head_dim = dense_columns(pattern), images_of(v), v.shape[2] // heads

    def launch(tiles: tune.Tiles) -> None:
        apply_pattern_kernel[(v.shape[0] * heads, triton.cdiv(queries, tiles["BLOCK_M"]))](
            pattern, v, out, queries, keys, heads, pattern.stride(0), pattern.stride(1), v.stride(0), v.stride(1),
            HEAD_DIM=head_dim, BLOCK_D=tile(head_dim), **tiles)

    key = (tune.near(v.shape[0] * heads), queries, keys, head_dim)
    launch(tune.choose("apply_pattern", v, key, EXACT_TILES if v.dtype == torch.float32 else TILES, launch))
    return out
