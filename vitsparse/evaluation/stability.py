"""Does a search find the same circuit on other images of the same kind?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..circuit import Circuit
from ..errors import InputError
from .batches import pairs

Batches = list[tuple[Tensor, Tensor | None]]


def jaccard(a: Circuit, b: Circuit) -> float:
    """|a & b| / |a | b|: the edges in both as a share of those in either; 1 for two empty circuits."""
    either = (a | b).num_kept
    return (a & b).num_kept / either if either else 1.0


@dataclass(frozen=True)
class Stability:
    """The circuits that one search found on bootstrap samples of the images."""

    circuits: tuple[Circuit, ...]

    @cached_property
    def jaccards(self) -> tuple[float, ...]:
        """The overlap of each pair of circuits."""
        return tuple(jaccard(a, b) for a, b in itertools.combinations(self.circuits, 2))

    @property
    def mean(self) -> float:
        """The mean overlap of two circuits."""
        return float(np.mean(self.jaccards))

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 95 % of the overlaps: their 2.5th and 97.5th percentile."""
        low, high = np.percentile(self.jaccards, (2.5, 97.5))
        return float(low), float(high)

    @property
    def edge_frequency(self) -> np.ndarray:
        """[E]: the share of the circuits that keep each edge."""
        return np.mean([circuit.keep for circuit in self.circuits], axis=0)


def stability(find: Callable[[Batches], Circuit], batches: Iterable[tuple[Tensor, Tensor | None]], *, runs: int = 10,
              seed: int = 0, progress: bool = True) -> Stability:
    """Search ``runs`` times, each time on as many images drawn with replacement (Efron's bootstrap, 1979).

    ``find(batches)`` returns the circuit of a re-iterable of (images, labels); batches keep their sizes. All images are
    held in memory. Raises :class:`InputError` for fewer than two runs, no images, and a ``find`` that returns anything
    but circuits of one graph.
    """
    if runs < 2:
        raise InputError("stability compares searches", where="stability(runs=...)", expected="at least 2", found=runs)
    from tqdm import tqdm

    loaded = list(pairs(batches, None))
    if not loaded:
        raise InputError("there are no images to draw from", where="batches", expected="at least one batch")
    sizes = [len(images) for images, _ in loaded]
    images = torch.cat([images for images, _ in loaded])
    labels = torch.cat([labels for _, labels in loaded]) if isinstance(loaded[0][1], Tensor) else None
    rng, circuits = np.random.default_rng(seed), []
    for _ in tqdm(range(runs), desc="stability", unit="search", disable=None if progress else True):
        chosen = torch.from_numpy(rng.integers(len(images), size=len(images))).split(sizes)
        circuits.append(find([(images[some], None if labels is None else labels[some]) for some in chosen]))
        if not isinstance(circuits[-1], Circuit) or circuits[-1].graph != circuits[0].graph:
            raise InputError("the search must return circuits of one graph", where="find(batches)",
                             expected="a Circuit", found=repr(circuits[-1]), remedy="of scores, return scores.top_k(n)")
    return Stability(tuple(circuits))
