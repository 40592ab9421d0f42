"""qkv_attention: attention of q, k, v = x W^T + b. One program per image and head; only its output goes to memory.

The tokens of an image are two blocks, MAIN and the rest, TAIL (0 for none): 65 tokens cost 64 + 16, not 128. All of
q, k and v of a head stay in registers, which bounds tokens and head width; beyond, linear and attention do it.
"""

# ruff: noqa: PLR0913  (Triton kernels take pointers and strides one by one)
from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import tune
from .attention import LOG2_E, attention
from .common import LEAST, dense_columns, half_accumulate, images_of, multiply_add, tile
from .linear import linear

# Rows of both blocks, and numbers of q in them: what four warps have registers for, and what eight have.
FEW = (96, 5120)
MOST = (160, 8192)


@triton.jit
def add_bias(x, bias, real, HAS_BIAS: tl.constexpr, dtype: tl.constexpr):
    """x + the numbers at ``bias`` [D], of which ``real`` exist, rounded."""
    if HAS_BIAS:
        x += tl.load(bias, mask=real, other=0).to(tl.float32)[None, :]
    return x.to(dtype)


@triton.jit
def attend(q, k, v, k_rest, v_rest, tokens, scale, MAIN: tl.constexpr, TAIL: tl.constexpr):
    """softmax(scale q k^T) v over all keys at once, float32; ``scale`` holds log2(e): powers of 2."""
    key = tl.arange(0, MAIN)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if TAIL == 0:  # otherwise MAIN is full
        scores = tl.where((key < tokens)[None, :], scores, float("-inf"))
    highest = tl.max(scores, 1)
    if TAIL > 0:
        rest = MAIN + tl.arange(0, TAIL)
        scores_rest = tl.dot(q, tl.trans(k_rest), input_precision="ieee") * scale
        scores_rest = tl.where((rest < tokens)[None, :], scores_rest, float("-inf"))
        highest = tl.maximum(highest, tl.max(scores_rest, 1))
    weights = tl.exp2(scores - highest[:, None])
    weight = tl.sum(weights, 1)
    total = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    if TAIL > 0:
        weights_rest = tl.exp2(scores_rest - highest[:, None])
        weight += tl.sum(weights_rest, 1)
        total = tl.dot(weights_rest.to(v.dtype), v_rest, total, input_precision="ieee")
    return total / weight[:, None]


@triton.jit
def project(
    x_ptr, weight_ptr, bias_ptr, tokens, inputs, x_row, weight_row, width, column, HAS_BIAS: tl.constexpr,
    HALF: tl.constexpr, real, dtype: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """q, k and v of the rows of MAIN, then of TAIL (where it is 0, of MAIN again), for one image and head.

    ``width``: rows of the weight between q, k and v; ``column`` [D]: the head's rows in each, of which ``real`` exist.
    """
    row, k = tl.arange(0, MAIN), tl.arange(0, BLOCK_K)
    xs = x_ptr + tl.minimum(row, tokens - 1).to(tl.int64)[:, None] * x_row + k[None, :]
    ws = weight_ptr + tl.minimum(column, width - 1)[None, :] * weight_row + k[:, None]
    q = tl.zeros((MAIN, column.shape[0]), tl.float32)
    key, value = q, q
    if TAIL > 0:
        rest = MAIN + tl.arange(0, TAIL)
        xs_rest = x_ptr + tl.minimum(rest, tokens - 1).to(tl.int64)[:, None] * x_row + k[None, :]
        q_rest = tl.zeros((TAIL, column.shape[0]), tl.float32)
        key_rest, value_rest = q_rest, q_rest
    for first in range(0, inputs, BLOCK_K):
        here = k < inputs - first
        x = tl.load(xs + first, mask=here[None, :], other=0)
        w_q = tl.load(ws + first, mask=here[:, None] & real[None, :], other=0)
        w_k = tl.load(ws + first + width * weight_row, mask=here[:, None] & real[None, :], other=0)
        w_v = tl.load(ws + first + 2 * width * weight_row, mask=here[:, None] & real[None, :], other=0)
        q, key = multiply_add(x, w_q, q, HALF), multiply_add(x, w_k, key, HALF)
        value = multiply_add(x, w_v, value, HALF)
        if TAIL > 0:
            x = tl.load(xs_rest + first, mask=here[None, :], other=0)
            q_rest, key_rest = multiply_add(x, w_q, q_rest, HALF), multiply_add(x, w_k, key_rest, HALF)
            value_rest = multiply_add(x, w_v, value_rest, HALF)
    b_q, b_k, b_v = bias_ptr + column, bias_ptr + width + column, bias_ptr + 2 * width + column
    q, key = add_bias(q, b_q, real, HAS_BIAS, dtype), add_bias(key, b_k, real, HAS_BIAS, dtype)
    value = add_bias(value, b_v, real, HAS_BIAS, dtype)
    if TAIL > 0:
        q_rest, key_rest = add_bias(q_rest, b_q, real, HAS_BIAS, dtype), add_bias(key_rest, b_k, real, HAS_BIAS, dtype)
        return q, key, value, q_rest, key_rest, add_bias(value_rest, b_v, real, HAS_BIAS, dtype)
    else:
        return q, key, value, q, key, value


@triton.jit
def qkv_attention_kernel(
    x_ptr, weight_ptr, bias_ptr, keep_ptr, out_ptr, tokens, inputs, heads, scale, x_image, x_row, weight_row,
    keep_image, keep_head, HAS_BIAS: tl.constexpr, HAS_KEEP: tl.constexpr, HALF: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """out[b, :, h] = softmax(scale q k^T) v for head h; zeros where ``keep`` says no."""
    image, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    row, d = tl.arange(0, MAIN), tl.arange(0, BLOCK_D)
    real, width, column = d < HEAD_DIM, tl.full((), heads * HEAD_DIM, tl.int64), head * HEAD_DIM + d
    outs = out_ptr + image * tokens * width + column[None, :]
    kept = True
    if HAS_KEEP:
        kept = tl.load(keep_ptr + image * keep_image + head * keep_head) != 0
    if kept:
        q, k, v, q_rest, k_rest, v_rest = project(
            x_ptr + image * x_image, weight_ptr, bias_ptr, tokens, inputs, x_row, weight_row, width, column, HAS_BIAS,
            HALF, real, dtype, MAIN, TAIL, BLOCK_K)
        z = attend(q, k, v, k_rest, v_rest, tokens, scale, MAIN, TAIL)
        tl.store(outs + row[:, None] * width, z.to(dtype), mask=(row < tokens)[:, None] & real[None, :])
        if TAIL > 0:
            z = attend(q_rest, k, v, k_rest, v_rest, tokens, scale, MAIN, TAIL)
            rest = MAIN + tl.arange(0, TAIL)
            tl.store(outs + rest[:, None] * width, z.to(dtype), mask=(rest < tokens)[:, None] & real[None, :])
    else:
        for first in range(0, tokens, BLOCK_K):
            skipped = first + tl.arange(0, BLOCK_K)
            tl.store(outs + skipped[:, None] * width, tl.zeros((BLOCK_K, BLOCK_D), dtype),
                     mask=(skipped < tokens)[:, None] & real[None, :])


def _tiles(*sizes: tuple[int, int, int]) -> tuple[tune.Tiles, ...]:
    return tuple(tune.tiles(BLOCK_K=k, num_warps=warps, num_stages=stages) for k, warps, stages in sizes)


TILES = _tiles((32, 4, 3), (64, 4, 2), (32, 4, 4), (64, 8, 2), (32, 8, 3), (64, 4, 3))
LARGE_TILES = _tiles((32, 8, 3), (32, 8, 2))
LONG_TILES = _tiles((64, 8, 2))  # of more than 128 rows
EXACT_TILES = _tiles((16, 8, 1))  # float32 is for checking


def blocks(tokens: int) -> tuple[int, int]:
    """MAIN and TAIL: the two blocks with the fewest rows that hold ``tokens``."""
    whole = tile(tokens)
    main = max(whole // 2, LEAST)
    rest = tile(tokens - main) if tokens > main else 0
    return (main, rest) if main + rest < whole else (whole, 0)


def fits(tokens: int, head_dim: int, rows_and_numbers: tuple[int, int]) -> bool:
    """Whether q, k and v of a head are within these limits."""
    rows = sum(blocks(tokens))
    return rows <= rows_and_numbers[0] and rows * tile(head_dim) <= rows_and_numbers[1]


def _candidates(x: torch.Tensor, head_dim: int) -> tuple[tune.Tiles, ...]:
    if x.dtype == torch.float32:
        return EXACT_TILES
    if fits(x.shape[1], head_dim, FEW):
        return TILES
    return LARGE_TILES if sum(blocks(x.shape[1])) <= 128 else LONG_TILES


def qkv_attention(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, heads: int, scale: float,
    head_keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of q, k, v = x W^T + b for ``x`` [B, T, D] and ``weight`` [3 * heads * head_dim, D]."""
    head_dim, tokens = weight.shape[0] // 3 // heads, x.shape[1]
    if not fits(tokens, head_dim, MOST):
        return attention(*linear(x, weight, bias, "none").chunk(3, -1), heads, scale, head_keep)
    out = x.new_empty((*x.shape[:2], heads * head_dim))
    if out.numel() == 0:
        return out
    x, weight = images_of(x), dense_columns(weight)
    bias = None if bias is None else dense_columns(bias)
    main, rest = blocks(tokens)
    half = half_accumulate(x)

    def launch(tiles: tune.Tiles) -> None:
        qkv_attention_kernel[(x.shape[0] * heads,)](
            x, weight, x if bias is None else bias, x if head_keep is None else head_keep, out, tokens, x.shape[2],
            heads, scale * LOG2_E, x.stride(0), x.stride(1), weight.stride(0),
            *((0, 0) if head_keep is None else head_keep.stride()), HAS_BIAS=bias is not None,
            HAS_KEEP=head_keep is not None, HALF=half, HEAD_DIM=head_dim, BLOCK_D=tile(head_dim), MAIN=main, TAIL=rest,
            **tiles)

    key = (tune.near(x.shape[0] * heads), main, rest, tune.near(x.shape[2]), head_dim, half)
    launch(tune.choose("qkv_attention", x, key, _candidates(x, head_dim), launch))
    return out
