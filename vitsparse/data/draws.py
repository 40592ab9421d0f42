"""Random numbers as a pure function of (seed, epoch, data set index, purpose, counter).

There is no generator and no state: the same five integers give the same number on every device, in every batch and
after every restart. A key is made from the first four by absorbing them one after the other into the finaliser of
SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014); the numbers of one key are
the SplitMix64 sequence that starts there. torch has no unsigned arithmetic, so the 64-bit words live in int64, whose
products wrap around alike on CPU and CUDA.
"""

from __future__ import annotations

import functools
import hashlib

import torch
from torch import Tensor

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15 - WORD
MULTIPLIERS = (0xBF58476D1CE4E5B9 - WORD, 0x94D049BB133111EB - WORD)


def uniform(seed: int, epoch: int, indices: Tensor, purpose: str, n: int) -> Tensor:
    """float32 [B, n] in [0, 1), in steps of 2**-24; ``indices`` int64 [B] are data set indices."""
    return _logical_shift(_words(seed, epoch, indices, purpose, n), 40).to(torch.float32) * 2.0**-24


def normal(seed: int, epoch: int, indices: Tensor, purpose: str, n: int) -> Tensor:
    """float32 [B, n], standard normal, |z| < 4.4, on the device of ``indices``.

    Each value is the normal quantile of 16 random bits: pixel noise is drawn by the million, and one 64-bit word
    serves four pixels. A table keeps it free of the logarithms and cosines in which devices differ.
    """
    position = _words(seed, epoch, indices, purpose, -(-n // 4)).view(torch.uint16).to(torch.int32)
    return _normal_quantiles(indices.device).index_select(0, position.view(-1)).view(position.shape)[:, :n]


def permutation(seed: int, epoch: int, n: int, device: str | torch.device = "cpu") -> Tensor:
    """int64 [n]: the order in which an epoch visits a data set of n images, the same on every device."""
    return torch.argsort(_words(seed, epoch, torch.arange(n, device=device), "order", 1)[:, 0], stable=True)


def _words(seed: int, epoch: int, indices: Tensor, purpose: str, n: int) -> Tensor:
    """int64 [B, n] of 64 random bits each."""
    keys = _absorb(indices, _state(seed, epoch, purpose))
    counters = torch.arange(1, n + 1, device=indices.device) * GOLDEN
    return _mix(keys[:, None] + counters)


@functools.lru_cache(maxsize=64)
def _state(seed: int, epoch: int, purpose: str) -> int:
    """What the first three integers of a key come to."""
    state = torch.zeros((), dtype=torch.int64)
    for value in (seed, epoch, _purpose_number(purpose)):
        state = _absorb(state, value)
    return int(state)


def _absorb(state: Tensor, value: int) -> Tensor:
    return _mix(state + _signed(value + GOLDEN))


def _mix(words: Tensor) -> Tensor:
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        words = _logical_shift(words, shift).bitwise_xor_(words).mul_(multiplier)
    return _logical_shift(words, 31).bitwise_xor_(words)


def _logical_shift(words: Tensor, shift: int) -> Tensor:
    """Shift right filling with zeros; ``>>`` on int64 would fill with the sign."""
    return (words >> shift).bitwise_and_(2 ** (64 - shift) - 1)


def _signed(value: int) -> int:
    return (value + WORD // 2) % WORD - WORD // 2


def _purpose_number(purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


@functools.cache
def _normal_quantiles(device: torch.device) -> Tensor:
    """float32 [65536]: quantiles at the midpoints, scaled to variance one (the cut tails cost 0.01 %).

    Rolled by half: 16 bits u stand for the quantile of u as a signed number.
    """
    midpoints = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    quantiles = torch.special.ndtri(midpoints)
    return (quantiles / quantiles.square().mean().sqrt()).roll(2**15).to(torch.float32).to(device)
