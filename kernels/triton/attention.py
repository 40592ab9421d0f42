"""attention: softmax(scale q k^T) v. One program per image, head and block of queries; the keys pass by in blocks.

Whole blocks of keys need no mask; the rest goes into one last, smaller block, so that 65 keys cost 64 + 16.
"""

# ruff: noqa: PLR0913  (Triton kernels take pointers and strides one by one)
from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import tune
from .common import images_of, tile

LOG2_E = 1.4426950408889634


@triton.jit
def absorb(q, k, v, here, total, highest, weight, scale, MASKED: tl.constexpr):
    """One block of keys into a softmax under way: sums of values [M, D], highest score and sum of weights [M].

    ``q`` [M, D], ``k`` [D, N], ``v`` [N, D]; ``here`` [N]: which keys exist. ``scale`` holds log2(e): powers of 2.
    """
    scores = tl.dot(q, k, input_precision="ieee") * scale
    if MASKED:
        scores = tl.where(here[None, :], scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1))
    shrink = tl.exp2(highest - higher)
    weights = tl.exp2(scores - higher[:, None])
    total = tl.dot(weights.to(v.dtype), v, total * shrink[:, None], input_precision="ieee")
    return total, higher, weight * shrink + tl.sum(weights, 1)


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, keep_ptr, out_ptr, queries, keys, heads, scale,
    q_image, q_row, k_image, k_row, v_image, v_row, keep_image, keep_head,
    HAS_KEEP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """out[b, i, h] = softmax(scale q k^T) v; zeros where ``keep`` says no. TAIL: keys of the last block, 0 for none."""
    image, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    row, d = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    real = d < HEAD_DIM
    outs = out_ptr + ((image * queries + row)[:, None] * heads + head) * HEAD_DIM + d[None, :]
    inside = (row < queries)[:, None] & real[None, :]
    kept = True
    if HAS_KEEP:
        kept = tl.load(keep_ptr + image * keep_image + head * keep_head) != 0
    if kept:
        near_row = tl.minimum(row, queries - 1).to(tl.int64)
        column = head * HEAD_DIM + d
        q = tl.load(q_ptr + image * q_image + near_row[:, None] * q_row + column[None, :], mask=real[None, :], other=0)
        ks, vs = k_ptr + image * k_image + column[:, None], v_ptr + image * v_image + column[None, :]
        total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        highest, weight = tl.full((BLOCK_M,), float("-inf"), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
        whole = keys // BLOCK_N * BLOCK_N
        for first in range(0, whole, BLOCK_N):
            key = (first + tl.arange(0, BLOCK_N)).to(tl.int64)
            k = tl.load(ks + key[None, :] * k_row, mask=real[:, None], other=0)
            v = tl.load(vs + key[:, None] * v_row, mask=real[None, :], other=0)
            total, highest, weight = absorb(q, k, v, key, total, highest, weight, scale, False)
        if TAIL > 0:
            key = whole + tl.arange(0, TAIL)
            here, key = key < keys, tl.minimum(key, keys - 1).to(tl.int64)
            k = tl.load(ks + key[None, :] * k_row, mask=real[:, None], other=0)
            v = tl.load(vs + key[:, None] * v_row, mask=real[None, :], other=0)
            total, highest, weight = absorb(q, k, v, here, total, highest, weight, scale, True)
        tl.store(outs, (total / weight[:, None]).to(out_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(outs, tl.zeros((BLOCK_M, BLOCK_D), out_ptr.dtype.element_ty), mask=inside)


def _tiles(*sizes: tuple[int, int, int, int]) -> tuple[tune.Tiles, ...]:
    return tuple(tune.tiles(BLOCK_M=m, BLOCK_N=n, num_warps=warps, num_stages=stages) for m, n, warps, stages in sizes)


TILES = _tiles((16, 64, 1, 2), (16, 32, 1, 2), (32, 64, 2, 2), (32, 32, 2, 2), (64, 64, 4, 2), (64, 32, 4, 3))
WIDE_TILES = _tiles((16, 32, 2, 2), (16, 64, 4, 2), (32, 32, 4, 2))  # of heads wider than 64
EXACT_TILES = _tiles((16, 16, 4, 1))  # float32 is for checking


def tail(keys: int, block: int) -> int:
    """The size of the last block of keys: what whole blocks leave over, as a tile."""
    return tile(keys % block) if keys % block else 0


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, scale: float, head_keep: torch.Tensor | None = None
) -> torch.Tensor:
    """softmax(scale q k^T) v for each image and head, contiguous [B, Tq, heads * head_dim]; see the op's contract."""
    images = max(x.shape[0] for x in (q, k, v))
    out = q.new_empty((images, *q.shape[1:]))
    if out.numel() == 0:
        return out
    q, k, v = (images_of(x).expand(images, -1, -1) for x in (q, k, v))
    queries, keys, head_dim = q.shape[1], k.shape[1], q.shape[2] // heads

    def launch(tiles: tune.Tiles) -> None:
        attention_kernel[(images * heads, triton.cdiv(queries, tiles["BLOCK_M"]))](
            q, k, v, q if head_keep is None else head_keep, out, queries, keys, heads, scale * LOG2_E,
            *(x.stride(i) for x in (q, k, v) for i in (0, 1)), *((0, 0) if head_keep is None else head_keep.stride()),
            HAS_KEEP=head_keep is not None, HEAD_DIM=head_dim, BLOCK_D=tile(head_dim),
            TAIL=tail(keys, tiles["BLOCK_N"]), **tiles)

    key = (tune.near(images * heads), queries, keys, head_dim)
    candidates = EXACT_TILES if q.dtype == torch.float32 else TILES if head_dim <= 64 else WIDE_TILES
    launch(tune.choose("attention", q, key, candidates, launch))
    return out
