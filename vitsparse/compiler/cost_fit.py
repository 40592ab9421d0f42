"""Prices from measured times: linear in what is counted, none below zero, with the least relative error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .cost_features import FEATURES, Features

NAMES = tuple((kind, size) for kind, sizes in FEATURES.items() for size in sizes)
ROUNDS, LEAST_ERROR = 12, 0.01
SMALL = 0.05  # the share of a plan's time below which the error of a wave is relative to the plan instead


@dataclass(frozen=True)
class Fit:
    """A price for each kind and size of :data:`FEATURES` that occurred, and the mean relative error that is left."""

    prices: dict[tuple[str, str], float]
    error: float


def fit(timings: Sequence[tuple[Sequence[Features], np.ndarray]]) -> Fit:
    """Prices for ``timings``: for each plan the features of its waves, and their microseconds.

    The sum of the relative errors of waves and of plans is made small, not of their squares: a wave that was
    interrupted in most repeats then decides nothing.
    """
    rows, times = zip(*(_weighted(*timing) for timing in timings), strict=True)
    matrix, target = np.concatenate(rows), np.concatenate(times)
    trust = np.ones(len(target))
    for _ in range(ROUNDS):
        prices = nonnegative_least_squares(matrix * trust[:, None], target * trust)
        trust = np.maximum(LEAST_ERROR, np.abs(matrix @ prices - target)) ** -0.5
    named = {name: float(price) for name, price, used in zip(NAMES, prices, matrix.any(0), strict=True) if used}
    return Fit(named, float(np.abs(matrix @ prices - target).mean()))


def _weighted(features: Sequence[Features], times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a plan's waves and of all together, such that errors are relative; the whole counts as much as its parts.
    """
    counts, whole = as_matrix(features), times.sum()
    weights = 1 / (times + SMALL * whole)
    together = np.sqrt(len(times)) / whole
    return (np.concatenate((counts * weights[:, None], together * counts.sum(0, keepdims=True))),
            np.append(times * weights, together * whole))


def as_matrix(features: Iterable[Features]) -> np.ndarray:
    """One row for each, in the order of :data:`NAMES`."""
    return np.array([[row.get(name, 0.0) for name in NAMES] for row in features])


def nonnegative_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """argmin |matrix x - target| over x >= 0, by the active sets of Lawson and Hanson (1974)."""
    lengths = np.linalg.norm(matrix, axis=0)
    lengths[lengths == 0] = np.inf
    scaled = matrix / lengths
    x, free = np.zeros(matrix.shape[1]), np.zeros(matrix.shape[1], dtype=bool)
    for _ in range(10 * matrix.shape[1]):
        slope = np.where(free, -np.inf, scaled.T @ (target - scaled @ x))
        if slope.max() <= 1e-10 * np.linalg.norm(target):
            break
        free[slope.argmax()] = True
        while True:
            best = np.zeros_like(x)
            best[free] = np.linalg.lstsq(scaled[:, free], target, rcond=None)[0]
            below = free & (best <= 0)
            if not below.any():
                break
            step = (x[below] / np.maximum(x[below] - best[below], 1e-300)).min()
            x = x + min(step, 1.0) * (best - x)
            free &= x > 1e-15
            x[~free] = 0.0
        x = best
    return x / lengths
