"""Where the values of a plan lie in memory while it runs: one arena, shared by values that never live together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .steps import Embed, Step, View, length

ALIGN = 16  # floats: one cache line, one AVX-512 register
PAGE = 1024  # floats: what a way of a first-level cache holds
SAME_LINES = PAGE // 2
STAGGER = 64
"""Large values are an odd number of these long, so that those side by side begin in different cache lines."""
CUT_IMAGES = "patches"
"""The name of the images cut into patches, which live inside the embedding alone."""


def lifetimes(waves: Sequence[Sequence[Step]], kept_elsewhere: frozenset[str]) -> dict[str, tuple[int, int]]:
    """First and last wave at which each value is touched, but for those ``kept_elsewhere``."""
    lives: dict[str, tuple[int, int]] = {}
    for position, wave in enumerate(waves):
        for step in wave:
            names = {view.name for view in (*step.reads, *step.writes)}
            if isinstance(step, Embed):
                names.add(CUT_IMAGES)
            for name in names - kept_elsewhere:
                lives[name] = (lives.get(name, (position,))[0], position)
    return lives


def row_stride(width: int) -> int:
    """Floats from one row of a value to the next: rows half a page apart would compete for the same cache lines."""
    return width + ALIGN if width % SAME_LINES == 0 else width


def sizes(values: Mapping[str, View], patches: int, patch_dim: int) -> dict[str, int]:
    """Floats of each value, of an image. Equal ones side by side must not lie whole pages apart, for that reason."""
    floats = {name: length(view.rows) * row_stride(view.cols[1]) for name, view in values.items()}
    floats[CUT_IMAGES] = patches * row_stride(patch_dim)
    return {name: size + (STAGGER - size) % (2 * STAGGER) if size >= PAGE else size for name, size in floats.items()}


def place(lives: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Offsets (in floats, aligned) such that values alive in the same wave never overlap; largest first, first fit."""
    placed: dict[str, tuple[int, int]] = {}
    for name in sorted(lives, key=lambda name: (-sizes[name], lives[name])):
        size = sizes[name] + -sizes[name] % ALIGN
        taken = sorted(placed[other] for other in placed
                       if lives[other][0] <= lives[name][1] and lives[name][0] <= lives[other][1])
        offset = 0
        for start, stop in taken:
            if offset + size <= start:
                break
            offset = max(offset, stop)
        placed[name] = (offset, offset + size)
    return {name: start for name, (start, _) in placed.items()}, max((stop for _, stop in placed.values()), default=0)
