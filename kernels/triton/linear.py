"""linear: activation(x W^T + b). One program computes a tile of BLOCK_M rows and BLOCK_N outputs."""

# ruff: noqa: PLR0913  (Triton kernels take pointers and strides one by one)
from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import tune
from .common import dense_columns, gelu, half_accumulate, images_of, multiply_add

GROUP = tl.constexpr(8)  # row blocks whose programs run side by side, so that they share weights in the L2 cache


@triton.jit
def linear_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, rows, tokens, outputs, inputs, x_image, x_row, weight_row, bias_row,
    BIAS: tl.constexpr, GELU: tl.constexpr, HALF: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """out[r, n] = activation(sum over k of x[r, k] weight[n, k] + bias); row r is token r % tokens of an image.

    BIAS: "none", "shared" or "per token"; EVEN: BLOCK_K divides ``inputs``. Rows and columns past the end repeat the
    last one and are not stored: only k is masked.
    """
    row_blocks, column_blocks = tl.cdiv(rows, BLOCK_M), tl.cdiv(outputs, BLOCK_N)
    program = tl.program_id(0)
    i, j = tl.swizzle2d(program // column_blocks, program % column_blocks, row_blocks, column_blocks, GROUP)
    row, column, k = i * BLOCK_M + tl.arange(0, BLOCK_M), j * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    near_row, near_column = tl.minimum(row, rows - 1), tl.minimum(column, outputs - 1)
    token = near_row % tokens
    start = (near_row // tokens).to(tl.int64) * x_image + token.to(tl.int64) * x_row
    xs = x_ptr + start[:, None] + k[None, :]
    ws = weight_ptr + near_column.to(tl.int64)[None, :] * weight_row + k[:, None]

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, inputs, BLOCK_K):
        if EVEN:
            x, w = tl.load(xs), tl.load(ws)
        else:
            x = tl.load(xs, mask=k[None, :] < inputs - first, other=0)
            w = tl.load(ws, mask=k[:, None] < inputs - first, other=0)
        total = multiply_add(x, w, total, HALF)
        xs += BLOCK_K
        ws += BLOCK_K

    if BIAS == "shared":
        total += tl.load(bias_ptr + near_column).to(tl.float32)[None, :]
    elif BIAS == "per token":
        total += tl.load(bias_ptr + token[:, None] * bias_row + near_column[None, :]).to(tl.float32)
    if GELU:
        total = gelu(total)
    outs = out_ptr + row.to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(outs, total.to(out_ptr.dtype.element_ty), mask=(row < rows)[:, None] & (column < outputs)[None, :])


TILES = tuple(tune.tiles(BLOCK_M=m, BLOCK_N=n, BLOCK_K=k, num_warps=warps, num_stages=stages)
              for m, n, k, warps, stages in (
                  (64, 64, 32, 4, 4), (16, 32, 128, 2, 4), (16, 64, 64, 2, 5), (32, 32, 64, 2, 5), (32, 64, 64, 4, 4),
                  (64, 32, 64, 4, 4), (64, 64, 64, 4, 4), (64, 128, 32, 4, 4), (128, 64, 64, 4, 3),
                  (128, 128, 32, 8, 4), (128, 128, 64, 8, 3)))
EXACT_TILES = (tune.tiles(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32, num_warps=4, num_stages=2),)  # float32 is for checking


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    """activation(x W^T + b), contiguous [..., N]. The op's contract checks shapes, dtypes and names."""
    out = x.new_empty((*x.shape[:-1], weight.shape[0]))
    if out.numel() == 0:
        return out
    x, weight = images_of(x), dense_columns(weight)
    bias = None if bias is None else dense_columns(bias)
    tokens, inputs, outputs, rows = x.shape[1], x.shape[2], weight.shape[0], x.shape[0] * x.shape[1]
    half, kind = half_accumulate(x), "none" if bias is None else "shared" if bias.dim() == 1 else "per token"

    def launch(tiles: tune.Tiles) -> None:
        grid = (triton.cdiv(rows, tiles["BLOCK_M"]) * triton.cdiv(outputs, tiles["BLOCK_N"]),)
        linear_kernel[grid](
            x, weight, weight if bias is None else bias, out, rows, tokens, outputs, inputs, x.stride(0), x.stride(1),
            weight.stride(0), 0 if bias is None else bias.stride(0), BIAS=kind, GELU=activation == "gelu", HALF=half,
            EVEN=inputs % tiles["BLOCK_K"] == 0, **tiles)

    key = (tune.near(rows), tune.near(outputs), tune.near(inputs), activation, half)
    launch(tune.choose("linear", x, key, EXACT_TILES if x.dtype == torch.float32 else TILES, launch))
    return out
