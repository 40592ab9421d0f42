"""Edge Pruning: a mask on every edge, learned by gradient descent while ever more edges have to go.

Bhaskar et al., "Finding Transformer Circuits with Edge Pruning", 2024 (arXiv 2406.16778). The mask of an edge is a hard
concrete variable (Louizos et al., "Learning Sparse Neural Networks through L0 Regularization", 2018) with one parameter
a, drawn anew in every step from u, uniform in (0, 1):

    s = sigmoid((log u - log(1 - u) + a) / beta)        keep = clamp(s (zeta - gamma) + gamma, 0, 1)

so it is often exactly 0 or 1 and yet has a gradient. With the expected share of edges that are cut,
S = 1 - mean over edges of P(keep > 0), and a target t that rises from where S starts to ``sparsity``, each step goes
down in a and up in the two multipliers on

    metric(keep) + l1 (S - t) + l2 (S - t)^2.

The gradient of the metric in ``keep`` is that of :class:`.gradients.EdgeGradients`; the rest is written out here.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..circuit import GRANULARITIES, EdgeScores, Graph
from ..data.draws import uniform
from ..data.ranks import ranks
from ..errors import InputError
from ..evaluation.ablation import Ablation
from ..evaluation.batches import pairs
from ..evaluation.evaluate import check_labels, device_of, eval_mode
from ..evaluation.metrics import Metric, metric_named
from ..model.edgewise import check_fits, corrupted
from ..model.vit import ViT
from .gradients import EdgeGradients
from .identity import data_digest, identity
from .state import State

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
OFFSET = BETA * math.log(-GAMMA / ZETA)
"""P(keep > 0) = sigmoid(a - OFFSET)."""
START = 2.0
"""Where every a starts: most masks are open, and few so far that they have no gradient."""
RAMP = 0.8
"""The share of the steps in which the target rises; it stays for the others."""
L2_START, MULTIPLIER_RATE = 10.0, 1.0
"""In units of the metric. The multipliers climb slowly: a leap of theirs cuts whole roads, which cannot come back,
because an edge that ends at a cut one has no gradient."""
NOISE_MARGIN = 1e-6


@torch.no_grad()
def edge_pruning(model: ViT, batches: Iterable[tuple[Tensor, Tensor]], *, graph: Graph, ablation: Ablation,  # noqa: PLR0913
                 metric: str | Metric = "kl", sparsity: float = 0.9, steps: int = 1000, lr: float = 0.1, seed: int = 0,
                 journal: str | os.PathLike | None = None, progress: bool = True) -> EdgeScores:
    """Learn which edges can go together until a share ``sparsity`` of them is cut; scores in (0, 1), float64 [E].

    The score of an edge is the mean over all steps of sigmoid(a). As the target rises, the least needed edges go first,
    so the order is meaningful for circuits of every size: ``scores.top_k(n)``. The number of edges that the last masks
    leave open is ``scores.provenance["edges"]``.

    ``batches``: re-iterable of images float [B, C, S, S] and labels int64 [B], held in memory; a step takes one batch,
    in turn. ``lr`` is Adam's, for a. ``journal``: a file of the state; the same search started again with it goes on
    where it was and ends with the same bits. Under ``torchrun`` each rank takes its part of every batch's images.
    Raises :class:`InputError` for settings out of range, a metric without a gradient, a graph of another shape or of
    operators, one-shot or empty batches, labels that the metric needs and that do not fit, values that are no finite
    numbers, and a journal of another search.
    """
    check_fits(model, graph)
    metric = metric_named(metric)
    _check_arguments(graph, metric, sparsity, steps, lr)
    with eval_mode(model):
        data = _Data(model, batches, graph, ablation, metric)
        search = identity("edge_pruning", model, graph, ablation, metric, data=data.digest, images=data.num_images,
                          sparsity=float(sparsity), steps=int(steps), lr=float(lr), seed=int(seed))
        state = State(journal, search)
        masks = _Masks(graph.num_edges, lr, state.arrays)
        _learn(data, masks, search, state, progress)
    del search["graph"]  # the scores hold it
    return EdgeScores(graph, masks.scores(), {**search, "edges": masks.num_open()})


def _learn(data: _Data, masks: _Masks, search: dict, state: State, progress: bool) -> None:
    """Take the steps that are left; the bar is quiet when the output is no terminal."""
    from tqdm import tqdm

    steps, start = search["steps"], masks.expected_sparsity(torch.tensor(START, dtype=torch.float64))[0]
    with tqdm(total=steps, initial=masks.step, desc="edge_pruning", unit="step",
              disable=None if progress and ranks().is_first else True) as bar:
        while masks.step < steps:
            noise = uniform(search["seed"], masks.step, torch.arange(len(masks.a)), "hard concrete", 1)[:, 0].double()
            value, gradient = data.gradient(masks.step, masks.draw(noise))
            target = start + (search["sparsity"] - start) * min(1.0, (masks.step + 1) / (RAMP * steps))
            reached = masks.descend(gradient, target)
            if state.due:
                state.save(masks.arrays())
            bar.set_postfix(cut=f"{reached:.3f}", value=f"{value:.3g}", refresh=False)
            bar.update()
        state.save(masks.arrays())


class _Masks:
    """The parameters a [E], the multipliers, and what Adam remembers; float64 on the CPU, whatever the model is."""

    def __init__(self, num_edges: int, lr: float, arrays: dict[str, np.ndarray] | None):
        self.a = torch.full((num_edges,), START, dtype=torch.float64)
        self.total = torch.zeros_like(self.a)
        self.l1, self.l2, self.step = 0.0, L2_START, 0
        self._slope = torch.zeros_like(self.a)
        self._adam = torch.optim.Adam([self.a], lr=lr)
        if arrays is not None:
            self.a.copy_(torch.from_numpy(arrays["a"]))
            self.total.copy_(torch.from_numpy(arrays["total"]))
            self.l1, self.l2, self.step = *map(float, arrays["multipliers"]), int(arrays["step"])
            self._adam.state[self.a] = {name.removeprefix("adam."): torch.from_numpy(array.copy())
                                        for name, array in arrays.items() if name.startswith("adam.")}

    def draw(self, noise: Tensor) -> Tensor:
        """keep [E] for noise [E] in [0, 1)."""
        s = torch.sigmoid((torch.logit(noise, NOISE_MARGIN) + self.a) / BETA)
        keep = s * (ZETA - GAMMA) + GAMMA
        self._slope = s * (1 - s) / BETA * (ZETA - GAMMA) * ((keep > 0) & (keep < 1))
        return keep.clamp(0, 1)

    def descend(self, gradient: Tensor, target: float) -> float:
        """One step, given d metric / d keep of the last draw; returns the expected share of cut edges before it."""
        sparsity, slope = self.expected_sparsity(self.a)
        gap = sparsity - target
        self.a.grad = gradient * self._slope + (self.l1 + 2 * self.l2 * gap) * slope
        self._adam.step()
        self.l1 += MULTIPLIER_RATE * gap
        self.l2 += MULTIPLIER_RATE * gap**2
        self.total += torch.sigmoid(self.a)
        self.step += 1
        return sparsity

    @staticmethod
    def expected_sparsity(a: Tensor) -> tuple[float, Tensor]:
        """S = 1 - mean of P(keep > 0), and dS/da."""
        opens = torch.sigmoid(a - OFFSET)
        return 1 - float(opens.mean()), -opens * (1 - opens) / opens.numel()

    def scores(self) -> np.ndarray:
        """The mean over the steps of sigmoid(a)."""
        return (self.total / self.step).numpy()

    def num_open(self) -> int:
        """How many edges the masks without noise let through, as a sum of their openings."""
        return round(float((torch.sigmoid(self.a) * (ZETA - GAMMA) + GAMMA).clamp(0, 1).sum()))

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that the next step depends on."""
        adam = {f"adam.{name}": value.numpy() for name, value in self._adam.state[self.a].items()}
        return {"a": self.a.numpy(), "total": self.total.numpy(), "step": np.array(self.step),
                "multipliers": np.array([self.l1, self.l2]), **adam}


@dataclass(frozen=True)
class _Batch:
    """This rank's part of a batch, and the number of images of the whole; ``corrupted`` only for a counterfactual."""

    images: Tensor
    labels: Tensor | None
    corrupted: Tensor | None
    dense_logits: Tensor
    num_images: int


class _Data:
    """The batches in memory, with the logits of the dense model, and the gradient of the metric over one of them."""

    def __init__(self, model: ViT, batches: Iterable[tuple[Tensor, Tensor]], graph: Graph, ablation: Ablation,
                 metric: Metric):
        whole = [batch for batch in pairs(batches, device_of(model)) if len(batch[0])]
        self.num_images = sum(len(images) for images, _ in whole)
        if not self.num_images:
            raise InputError("there are no images to search with", where="batches", expected="at least one batch")
        self.digest = data_digest(whole, ablation)
        self._batches = [_part(model, ablation, metric, batch, f"batch {index}") for index, batch in enumerate(whole)]
        self._now = self._batches[0]
        if ablation.corrupt is not None:  # of the whole batch, made once: it may mix the images of other ranks
            ablation = dataclasses.replace(ablation, corrupt=lambda images, labels: self._now.corrupted)
        self._gradients, self._num_edges = EdgeGradients(model, graph, ablation, metric), graph.num_edges

    def gradient(self, step: int, keep: Tensor) -> tuple[float, Tensor]:
        """The metric of ``keep`` [E], a mean over the images of the batch that is in turn, and its gradient [E]."""
        batch = self._now = self._batches[step % len(self._batches)]
        sums = torch.zeros(1 + self._num_edges, dtype=torch.float64)
        if len(batch.images):
            value, gradient = self._gradients(batch.images, batch.labels, keep, batch.dense_logits)
            sums = torch.cat([value[None], gradient]).cpu()
        mean = ranks().sum(sums) / batch.num_images
        if not torch.isfinite(mean).all():
            raise InputError("the metric or its gradient is no finite number", where=f"step {step}",
                             found=float(mean[0]), remedy="look for NaN in the images, the weights and the ablation")
        return float(mean[0]), mean[1:]


def _part(model: ViT, ablation: Ablation, metric: Metric, batch: tuple[Tensor, Tensor], where: str) -> _Batch:
    images, labels = batch
    if metric.needs_labels:
        check_labels(labels, torch.Size((len(images), model.num_classes)), where=where)
    part = ranks().part(len(images))
    rows = slice(part.start, part.stop)
    counterfactual = None if ablation.corrupt is None else corrupted(ablation, images, labels)[rows]
    return _Batch(images[rows], labels[rows] if isinstance(labels, Tensor) else None, counterfactual,
                  model(images[rows]), len(images))


def _check_arguments(graph: Graph, metric: Metric, sparsity: float, steps: int, lr: float) -> None:
    if graph.granularity not in GRANULARITIES:
        raise InputError("Edge Pruning needs readers of the residual stream, and an operator graph has none",
                         where="graph", expected=f"one of {GRANULARITIES}", found=graph,
                         remedy="use acdc or exact with this graph")
    if metric.name.startswith("accuracy"):
        raise InputError("Edge Pruning follows the gradient of its metric, and accuracy has none", where="metric",
                         expected="'kl', 'ce' or 'logit_difference'", found=repr(metric.name))
    if not 0 < sparsity < 1:
        raise InputError("the sparsity is the share of edges to cut", where="sparsity", found=sparsity,
                         expected="a number between 0 and 1, both excluded")
    if not hasattr(steps, "__index__") or steps < 1:
        raise InputError("Edge Pruning needs a number of steps", where="steps", expected="an integer >= 1", found=steps)
    if not (math.isfinite(lr) and lr > 0):
        raise InputError("the learning rate must be a positive number", where="lr", found=lr)
