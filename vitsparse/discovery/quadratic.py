"""How a metric changes when edges change, to second order around a circuit, for any set of them together.

With x the change of the edges' weights (-1: cut, +1: brought back), over the images b,

    M(keep + x) - M(keep)  =  g . x  +  1/2 mean_b ( h_b . x )^2

g is the gradient. The second part is the Gauss-Newton (here also Fisher) matrix of the softmax, J' (diag p - p p') J
with J the Jacobian of the logits, from one random draw for each image:

    h_b = J_b' v_b,   v = sqrt(p) z - p (sqrt(p) . z),   z standard normal,   so that  E[v v'] = diag p - p p'

It is what makes sense of the dense model, where the gradient of KL is zero, and it sees that two heads which do the
same must not both go. (LeCun, Denker and Solla, "Optimal Brain Damage", 1990; with the Fisher matrix over heads and
neurons: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", 2022, arXiv:2204.09656.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..circuit import Graph
from ..data.ranks import ranks
from ..errors import InputError
from ..evaluation.ablation import Ablation
from ..evaluation.metrics import Metric
from ..model.vit import ViT
from .gradients import metric_sum
from .passes import Part, Passes, Rows


@dataclass(frozen=True)
class Quadratic:
    """``slope`` [M] and ``response`` [B, M] of M changes: of all edges by +1, or of sets of edges (:meth:`sums`)."""

    slope: np.ndarray
    response: np.ndarray

    def sums(self, cells: np.ndarray, count: int) -> Quadratic:
        """``count`` changes, each that of the edges whose entry in ``cells`` [M] is its number (-1: of none)."""
        inside = np.flatnonzero(cells >= 0)
        response = [np.bincount(cells[inside], row, count) for row in self.response[:, inside]]
        return Quadratic(np.bincount(cells[inside], self.slope[inside], count), np.array(response))

    def signed(self, signs: np.ndarray) -> Quadratic:
        """The same changes, each -1 (taken away) or +1 (brought back) times, by ``signs`` [M]."""
        return Quadratic(self.slope * signs, self.response * signs)

    def times(self, matrix: np.ndarray) -> Quadratic:
        """Each column of ``matrix`` [M, N] makes one change of these: -1 takes away, +1 brings back."""
        return Quadratic(self.slope @ matrix, self.response @ matrix)

    def marginal(self, done: np.ndarray) -> np.ndarray:
        """[M]: by how much each raises the metric after others, whose responses add up to ``done`` [B]."""
        return self.slope + done @ self.response / len(done) + 0.5 * (self.response**2).mean(0)

    def together(self, changes: Sequence[int]) -> float:
        """By how much several raise the metric."""
        return float(self.slope[changes].sum() + 0.5 * (self.response[:, changes].sum(1) ** 2).mean())

    def choose(self, worth: np.ndarray, need: float, *, after: np.ndarray | None = None,
               overlap: np.ndarray | None = None, harmless: bool = False) -> list[int]:
        """The changes, one after another, that raise the metric least per ``worth`` [M] until that adds up to ``need``.

        ``after`` [B] are responses of what was done before. ``overlap`` [M, M] bool tells which exclude each other;
        ``harmless``: only those that do not raise the metric.
        """
        done = np.zeros(len(self.response)) if after is None else after
        free, chosen = worth > 0, []
        while need > 0 and free.any():
            marginal = self.marginal(done)
            # What is worth more than is needed gets no credit for the rest.
            price = np.where(free, marginal / np.minimum(np.maximum(worth, 1e-12), need), np.inf)
            index = int(np.argmin(price))
            if harmless and marginal[index] >= 0:
                break
            chosen.append(index)
            done, need, free[index] = done + self.response[:, index], need - worth[index], False
            if overlap is not None:
                free &= ~overlap[index]
        return chosen

    def fill(self, price: np.ndarray, room: float, *, after: np.ndarray) -> list[int]:
        """The changes, one after another, that lower the metric most per ``price`` [M] and that fit into ``room``."""
        done, chosen = after, []
        while True:
            marginal = self.marginal(done)
            fits = (price <= room) & (marginal < 0)
            fits[chosen] = False
            if not fits.any():
                return chosen
            index = int(np.argmin(np.where(fits, marginal / np.maximum(price, 1e-12), np.inf)))
            chosen.append(index)
            done, room = done + self.response[:, index], room - price[index]


class Quadratics:
    """Makes the :class:`Quadratic` of one circuit after another from the same images.

    Only for ``metric`` "kl" and "ce", whose second derivative in the logits is that of the softmax, also among some
    classes. Gradients must be off.
    """

    def __init__(self, model: ViT, batches: Iterable[tuple[Tensor, Tensor]], graph: Graph, ablation: Ablation,
                 metric: Metric):
        name, _, classes = metric.name.partition(" among ")
        if name not in ("kl", "ce"):
            raise InputError("this search needs a metric of probabilities", where="metric", expected="'kl' or 'ce'",
                             found=repr(metric.name))
        self._columns = [int(c) for c in classes.split(",")] if classes else list(range(model.num_classes))
        self._passes, self._metric = Passes(model, graph, ablation), metric
        self._batches = list(batches)
        self._images = sum(len(images) for images, _ in self._batches)

    def around(self, keep: np.ndarray, seed: int) -> Quadratic:
        """The quadratic of the circuit ``keep`` (bool [E]); ``seed`` fixes the draws."""
        passes, generator = self._passes, torch.Generator().manual_seed(seed)
        rows = passes.rows(torch.from_numpy(keep.astype(np.float32)))
        draws = torch.randn(self._images, len(self._columns), generator=generator, dtype=torch.float64)
        slope = torch.zeros(passes.graph.num_edges, dtype=torch.float64)
        response = torch.zeros(self._images, passes.graph.num_edges)
        here, first = ranks(), 0
        for index, (images, labels) in enumerate(self._batches):
            if index % here.world == here.rank:
                for part in passes.parts(images, labels):
                    own = slice(first + part.images.start, first + part.images.stop)
                    gradient, response[own] = self._part(part, rows, images, labels, draws[own].to(images.device))
                    slope += gradient.sum(0).cpu()
            first += len(images)
        return Quadratic((here.sum(slope) / self._images).numpy(), here.sum(response).numpy())

    def _part(self, part: Part, rows: Rows, images: Tensor, labels: Tensor | None,
              draws: Tensor) -> tuple[Tensor, Tensor]:
        """dM/dkeep and h [b, E] of the images of a part; ``draws`` [b, K] are standard normal."""
        passes = self._passes
        dense, results = passes.model(images[part.images]), []
        for function in (partial(metric_sum, self._metric), self._drawn(draws)):
            trace = passes.forward(part, rows)
            with torch.enable_grad():
                value = function(trace.logits, labels, dense, part.images)
            results.append(passes.backward_each(trace, value, part.differences, rows))
        return results[0], results[1]

    def _drawn(self, draws: Tensor) -> Callable[..., Tensor]:
        """<v, logits>, summed over the images; see the head of this module for v."""
        def product(logits: Tensor, *_: Any) -> Tensor:
            logits = logits.double()[:, self._columns]
            root = logits.detach().softmax(-1).sqrt()
            return (logits * (root * draws - root**2 * (root * draws).sum(-1, keepdim=True))).sum()

        return product
