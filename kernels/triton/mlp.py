"""mlp: gelu(norm(sum) W1^T + b1) W2^T + b2. One program per block of rows: gather, norm and both products.

The normed rows and the sums of the output stay on chip, in slices of SLICE columns (so that a width need not be a power
of 2); the hidden units pass by in chunks of BLOCK_H and never go to memory. Few rows make few programs, each of which
reads all weights: then, and for widths that do not fit, sum_norm and linear twice are among the candidates.
"""

# ruff: noqa: PLR0913  (Triton kernels take pointers and strides one by one)
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from . import tune
from .common import dense_columns, gelu, half_accumulate, images_of, multiply_add
from .linear import linear
from .sum_norm import few, gather, sum_norm

SLICE = 64
MOST_COLUMNS = 512  # of input and output, for the fused kernel


@triton.jit
def normed_rows(
    senders, image_strides, row_strides, offset_ptr, offset_row, total_ptr, row, rows, tokens, width, eps,
    COUNT: tl.constexpr, HAS_OFFSET: tl.constexpr, IN: tl.constexpr, SLICE: tl.constexpr, dtype: tl.constexpr,
):
    """Store offset + senders of each ``row`` [M] and return them normalised: a tuple of IN slices [M, SLICE]."""
    d, exists = tl.arange(0, SLICE), row < rows
    totals = total_ptr + row.to(tl.int64)[:, None] * width + d[None, :]
    mean, variance = tl.zeros((row.shape[0],), tl.float32), tl.zeros((row.shape[0],), tl.float32)
    for start in range(0, width, SLICE):
        column = start + d
        inside = exists[:, None] & (column < width)[None, :]
        total = gather(senders, image_strides, row_strides, offset_ptr, offset_row, row // tokens, row % tokens, column,
                       inside, COUNT, HAS_OFFSET)
        tl.store(totals + start, total.to(dtype), mask=inside)
        mean += tl.sum(total, 1) / width
    tl.debug_barrier()  # the sums are read again from here on, by other threads
    for start in range(0, width, SLICE):
        inside = exists[:, None] & (start + d < width)[None, :]
        centred = tl.load(totals + start, mask=inside, other=0).to(tl.float32) - mean[:, None]
        variance += tl.sum(tl.where(inside, centred * centred, 0), 1) / width
    scale = 1 / tl.sqrt(variance + eps)
    normed = ()
    for i in tl.static_range(IN):
        inside = exists[:, None] & (i * SLICE + d < width)[None, :]
        total = tl.load(totals + i * SLICE, mask=inside, other=0).to(tl.float32)
        normed = normed + (((total - mean[:, None]) * scale[:, None]).to(dtype),)  # beyond the width weights are 0
    return normed


@triton.jit
def mlp_kernel(
    senders, image_strides, row_strides, offset_ptr, offset_row, weight1_ptr, weight1_row, bias1_ptr, weight2_ptr,
    weight2_row, bias2_ptr, out_ptr, total_ptr, rows, tokens, width, hidden, outputs, eps,
    COUNT: tl.constexpr, HAS_OFFSET: tl.constexpr, HAS_BIAS: tl.constexpr, HALF: tl.constexpr,
    IN: tl.constexpr, OUT: tl.constexpr, SLICE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
):
    """IN and OUT: how many slices hold ``width`` and ``outputs``."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    row, d, h = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, SLICE), tl.arange(0, BLOCK_H)
    normed = normed_rows(senders, image_strides, row_strides, offset_ptr, offset_row, total_ptr, row, rows, tokens,
                         width, eps, COUNT, HAS_OFFSET, IN, SLICE, dtype)
    results = ()
    for _ in tl.static_range(OUT):
        results = results + (tl.zeros((BLOCK_M, SLICE), tl.float32),)
    near1, near2 = h[None, :] * weight1_row + d[:, None], d[None, :] * weight2_row + h[:, None]
    for first in range(0, hidden, BLOCK_H):
        here = first + h < hidden
        units = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
        for i in tl.static_range(IN):
            w = tl.load(weight1_ptr + first * weight1_row + near1 + i * SLICE,
                        mask=(i * SLICE + d < width)[:, None] & here[None, :], other=0)
            units = multiply_add(normed[i], w, units, HALF)
        units += tl.load(bias1_ptr + first + h, mask=here, other=0).to(tl.float32)[None, :]
        units = gelu(units).to(dtype)
        after = ()
        for j in tl.static_range(OUT):
            w = tl.load(weight2_ptr + first + near2 + j * SLICE * weight2_row,
                        mask=(j * SLICE + d < outputs)[None, :] & here[:, None], other=0)
            after = after + (multiply_add(units, w, results[j], HALF),)
        results = after
    outs = out_ptr + row.to(tl.int64)[:, None] * outputs + d[None, :]
    for j in tl.static_range(OUT):
        y, real = results[j], j * SLICE + d < outputs
        if HAS_BIAS:
            y += tl.load(bias2_ptr + j * SLICE + d, mask=real, other=0).to(tl.float32)[None, :]
        tl.store(outs + j * SLICE, y.to(dtype), mask=(row < rows)[:, None] & real[None, :])


def _tiles(*sizes: tuple[int, int, int, int]) -> tuple[tune.Tiles, ...]:
    return tuple(tune.tiles(BLOCK_M=m, BLOCK_H=h, num_warps=warps, num_stages=stages) for m, h, warps, stages in sizes)


TILES = _tiles((32, 32, 4, 2), (32, 32, 4, 3), (32, 64, 4, 2), (16, 64, 4, 2), (64, 16, 8, 3))
WIDE_TILES = _tiles((16, 32, 4, 2), (32, 16, 8, 2), (16, 16, 4, 2))
HOPPER_TILES = _tiles((64, 32, 8, 2), (64, 32, 4, 2), (128, 32, 8, 2))  # wgmma wants 64 rows; more shared memory
EXACT_TILES = _tiles((16, 16, 8, 1))  # float32 is for checking
UNFUSED: tune.Tiles = {}  # the candidate that is three launches


def candidates(x: torch.Tensor, columns: int) -> tuple[tune.Tiles, ...]:
    """What can run on tensors like ``x`` where input and output have at most ``columns``."""
    if columns > MOST_COLUMNS:
        return (UNFUSED,)
    if x.dtype == torch.float32:
        return EXACT_TILES
    hopper = x.is_cuda and columns <= 256 and torch.cuda.get_device_capability(x.device) >= (9, 0)
    return (*(TILES if columns <= 256 else WIDE_TILES), *(HOPPER_TILES if hopper else ()), UNFUSED)


def mlp(
    senders: Sequence[torch.Tensor], offset: torch.Tensor | None, eps: float, *weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gelu(norm(r) W1^T + b1) W2^T + b2, r) with r = offset + sum of ``senders`` [B, T, D]; both contiguous.

    ``weights``: W1 [hidden, D], b1 [hidden], W2 [outputs, hidden], b2 [outputs] or None. The op's contract checks them.
    """
    weight1, _, weight2, _ = weights = [None if w is None else dense_columns(w) for w in weights]
    first, width, (outputs, hidden) = senders[0], senders[0].shape[2], weight2.shape
    far = max(hidden * weight1.stride(0), outputs * weight2.stride(0)) >= 2**31  # the fused kernel counts with 32 bits
    if first.numel() == 0 or outputs == 0 or far:
        return unfused(senders, offset, eps, *weights)

    def launch(tiles: tune.Tiles) -> tuple[torch.Tensor, torch.Tensor]:
        if tiles == UNFUSED:
            return unfused(senders, offset, eps, *weights)
        return fused(tiles, senders, offset, eps, *weights)

    key = (tune.near(first.shape[0] * first.shape[1]), tune.near(width), tune.near(hidden), tune.near(outputs),
           tune.near(len(senders), least=1), half_accumulate(first))
    return launch(tune.choose("mlp", first, key, candidates(first, max(width, outputs)), launch))


def unfused(senders, offset, eps, weight1, bias1, weight2, bias2) -> tuple[torch.Tensor, torch.Tensor]:
    """Three launches: for few rows, and for what has no room on chip."""
    total, normed = sum_norm(senders, offset, eps)
    return linear(linear(normed, weight1, bias1, "gelu"), weight2, bias2, "none"), total


def fused(tiles: tune.Tiles, senders, offset, eps, *weights) -> tuple[torch.Tensor, torch.Tensor]:
    """One launch, for at most ``MOST_COLUMNS`` of input and output."""
    weight1, bias1, weight2, bias2 = weights
    senders = [images_of(x) for x in few(senders)]
    offset = None if offset is None else dense_columns(offset)
    images, tokens, width = senders[-1].shape
    (outputs, hidden), rows = weight2.shape, images * tokens
    total, out = (senders[-1].new_empty((images, tokens, columns)) for columns in (width, outputs))
    mlp_kernel[(triton.cdiv(rows, tiles["BLOCK_M"]),)](
        tuple(senders), tuple(x.stride(0) for x in senders), tuple(x.stride(1) for x in senders),
        total if offset is None else offset, 0 if offset is None else offset.stride(0), weight1, weight1.stride(0),
        bias1, weight2, weight2.stride(0), weight2 if bias2 is None else bias2, out, total, rows, tokens, width, hidden,
        outputs, eps, COUNT=len(senders), HAS_OFFSET=offset is not None, HAS_BIAS=bias2 is not None,
        HALF=half_accumulate(out), IN=triton.cdiv(width, SLICE), OUT=triton.cdiv(outputs, SLICE), SLICE=SLICE, **tiles)
    return out, total
