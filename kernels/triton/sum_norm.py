"""sum_norm: the sum of a list of senders and its normalisation. One program makes BLOCK_M whole rows."""

# ruff: noqa: PLR0913  (Triton kernels take pointers and strides one by one)
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from . import tune
from .common import dense_columns, images_of

MOST = 32  # senders of one launch


@triton.jit
def gather(
    senders, image_strides, row_strides, offset_ptr, offset_row, image, token, column, inside,
    COUNT: tl.constexpr, HAS_OFFSET: tl.constexpr,
):
    """offset + sum of the senders at rows (``image``, ``token``) [M] and ``column`` [N], in float32 [M, N]."""
    total = tl.zeros((image.shape[0], column.shape[0]), tl.float32)
    for i in tl.static_range(COUNT):
        start = image.to(tl.int64) * image_strides[i] + token.to(tl.int64) * row_strides[i]
        total += tl.load(senders[i] + start[:, None] + column[None, :], mask=inside, other=0).to(tl.float32)
    if HAS_OFFSET:
        numbers = offset_ptr + token[:, None] * offset_row + column[None, :]
        total += tl.load(numbers, mask=inside, other=0).to(tl.float32)
    return total


@triton.jit
def sum_norm_kernel(
    senders, image_strides, row_strides, offset_ptr, offset_row, total_ptr, normed_ptr, rows, tokens, width, eps,
    COUNT: tl.constexpr, HAS_OFFSET: tl.constexpr, NORM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """total = offset + senders, and normed = (total - mean) / sqrt(variance + eps) where NORM; a row is in BLOCK_D."""
    row, column = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    here = (column < width)[None, :]
    inside = (row < rows)[:, None] & here
    total = gather(senders, image_strides, row_strides, offset_ptr, offset_row, row // tokens, row % tokens, column,
                   inside, COUNT, HAS_OFFSET)
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(total_ptr + place, total.to(total_ptr.dtype.element_ty), mask=inside)
    if NORM:
        centred = tl.where(here, total - (tl.sum(total, 1) / width)[:, None], 0)
        normed = centred / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)[:, None]
        tl.store(normed_ptr + place, normed.to(normed_ptr.dtype.element_ty), mask=inside)


TILES = tuple(tune.tiles(BLOCK_M=m, num_warps=warps, num_stages=1) for m, warps in (
    (4, 4), (1, 1), (1, 2), (2, 2), (4, 2), (8, 4), (8, 8)))


def sum_norm(
    senders: Sequence[torch.Tensor], offset: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """offset + sum of ``senders``, and that normalised; both contiguous [B, T, D]. The op's contract checks shapes."""
    total, normed = (torch.empty_like(senders[0], memory_format=torch.contiguous_format) for _ in range(2))
    if total.numel() == 0:
        return total, normed
    _sum_norm(few(senders), offset, eps, total, normed)
    return total, normed


def few(senders: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """``senders``, or where they are too many for a launch their first ones added up in float32, and the rest."""
    senders = list(senders)
    while len(senders) > MOST:
        so_far = torch.empty_like(senders[-1], dtype=torch.float32, memory_format=torch.contiguous_format)
        _sum_norm(senders[:MOST], None, 0.0, so_far, None)
        senders = [so_far, *senders[MOST:]]
    return senders


def _sum_norm(senders, offset, eps, total, normed) -> None:
    """One launch; ``normed`` None: not wanted."""
    senders, tokens, width = [images_of(x) for x in senders], total.shape[1], total.shape[2]
    offset = None if offset is None else dense_columns(offset)
    rows, block = total.shape[0] * tokens, triton.next_power_of_2(width)

    def launch(tiles: tune.Tiles) -> None:
        sum_norm_kernel[(triton.cdiv(rows, tiles["BLOCK_M"]),)](
            tuple(senders), tuple(x.stride(0) for x in senders), tuple(x.stride(1) for x in senders),
            total if offset is None else offset, 0 if offset is None else offset.stride(0), total,
            total if normed is None else normed, rows, tokens, width, eps, COUNT=len(senders),
            HAS_OFFSET=offset is not None, NORM=normed is not None, BLOCK_D=block, **tiles)

    key = (tune.near(rows), block, tune.near(len(senders), least=1), normed is not None)
    launch(tune.choose("sum_norm", senders[-1], key, TILES, launch))
