"""Optimal ablation: the constants that do the least harm (Li and Janson, "Optimal ablation for interpretability", 2024,
arXiv 2409.09951).

What stands in for sender i is

    a_i = argmin over a [T, D] of the mean over images x of M(x; a in place of s_i(x)),

with every edge out of i cut and all others kept; M is the KL from the dense model, unless another metric is asked for.
The senders do not depend on each other, and neither do the images of a batch: so each image loses another sender, and
one forward and backward learns about as many senders as there are images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..circuit.graph import Graph
from ..data.draws import permutation
from ..data.ranks import ranks
from ..errors import InputError
from ..model.edgewise import group_bounds, sender_outputs
from ..model.vit import ViT
from .batches import pairs
from .evaluate import check_labels, device_of
from .metrics import Metric

GUARD_IMAGES = 64
"""How many images decide, for each sender, whether what was learned is better than the mean."""
SCALE_IMAGES = 16
"""How many images tell the standard deviation of a sender, which is the unit of its steps."""


@dataclass(frozen=True)
class Training:
    """How the constants are learned: Adam's ``lr`` in units of each sender's standard deviation, falling to 0."""

    metric: Metric
    steps: int
    lr: float
    seed: int

    def __post_init__(self):
        if self.metric.name.startswith("accuracy"):
            raise InputError("constants are learned along the gradient of the metric, and accuracy has none",
                             where="metric", expected="'kl' or 'ce'", found=repr(self.metric.name))
        if not hasattr(self.steps, "__index__") or self.steps < 0:
            raise InputError("learning takes a number of steps", where="steps", expected="an integer >= 0",
                             found=self.steps)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError("the learning rate must be a positive number", where="lr", found=self.lr)


@dataclass(frozen=True)
class _Batch:
    """Images [B, C, S, S], labels (None where the metric reads none) and the dense model's logits [B, K]."""

    images: Tensor
    labels: Tensor | None
    dense_logits: Tensor


def learn_constants(model: ViT, graph: Graph, mean: Tensor, batches: Iterable, training: Training, *,
                    progress: bool) -> Tensor:
    """The constants of the senders of ``graph``, learned from their means: float32 [S, T, D], as ``mean``, on the CPU.

    Where the first :data:`GUARD_IMAGES` images do not confirm that a sender gained, it keeps its mean. The model must
    be in eval mode and gradients off.
    """
    data = [_load(model, images, labels, training.metric, f"batch {index}")
            for index, (images, labels) in enumerate(pairs(batches, device_of(model))) if len(images)]
    one_less, start = _OneLess(model, graph), mean.to(model.pos_embed)
    # Compared as they will be stored, so that rounding cannot turn a gain into a loss.
    learned = _descend(one_less, start, data, training, progress).float().to(start)
    better = _harm(one_less, learned, data, training.metric) < _harm(one_less, start, data, training.metric)
    return torch.where(better[:, None, None], learned.float().cpu(), mean)


def _load(model: ViT, images: Tensor, labels: Any, metric: Metric, where: str) -> _Batch:
    if metric.needs_labels:
        check_labels(labels, torch.Size((len(images), model.num_classes)), where=where)
    return _Batch(images, labels if isinstance(labels, Tensor) else None, model(images))


class _OneLess:
    """The dense model in which every image of a batch loses one sender: the constant takes its place for every reader.

    It is the dense forward; a sub-block then takes back what the lost sender wrote, in the images that lost it.
    """

    def __init__(self, model: ViT, graph: Graph):
        self.model, self.graph, self.num_senders = model, graph, len(graph.senders)
        config, device = model.config, model.pos_embed.device
        bounds = torch.tensor(group_bounds(config.mlp_hidden, graph.mlp_groups)[1:-1], device=device)
        self._group_of = torch.bucketize(torch.arange(config.mlp_hidden, device=device), bounds, right=True)
        self._head_of = torch.arange(config.embed_dim, device=device) // config.head_dim

    def logits(self, images: Tensor, lost: Tensor, constants: Tensor) -> Tensor:
        """Logits [B, K] where image b loses sender ``lost[b]`` to its constant (of [S, T, D])."""
        x = self.model.embed(images)
        x = torch.where((lost == 0)[:, None, None], constants[0], x)
        for layer, block in enumerate(self.model.blocks):
            first = self.graph.writers_before(layer)
            notes = {"attn.z": None, "mlp.hidden": None}
            x = x + block.ls1(block.attn(block.norm1(x), notes, "attn"))
            rows, owns = _losing(lost - first, self._head_of, self.graph.heads)
            written = block.ls1(F.linear(notes["attn.z"].flatten(2)[rows] * owns, block.attn.proj.weight))
            x = x.index_add(0, rows, constants[lost[rows]] - written)
            out = block.ls2(block.mlp(block.norm2(x), notes, "mlp"))
            rows, owns = _losing(lost - first - self.graph.heads, self._group_of, self.graph.mlp_groups)
            bias = block.mlp.fc2.bias / self.graph.mlp_groups
            written = block.ls2(F.linear(notes["mlp.hidden"][rows] * owns, block.mlp.fc2.weight, bias))
            x = (x + out).index_add(0, rows, constants[lost[rows]] - written)
        return self.model.forward_head(self.model.norm(x))


def _losing(lost: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The images [r] that lose one of ``count`` senders, and which inner units [r, 1, U] are that sender's."""
    rows = ((lost >= 0) & (lost < count)).nonzero()[:, 0]
    return rows, (owner == lost[rows, None])[:, None]


def _descend(one_less: _OneLess, start: Tensor, batches: Sequence[_Batch], training: Training,
             progress: bool) -> Tensor:
    """Adam from ``start``; the bar is quiet when the output is no terminal."""
    from tqdm import tqdm

    outputs = sender_outputs(one_less.model, batches[0].images[:SCALE_IMAGES], one_less.graph)
    scale = (outputs - start[:, None]).square().mean((1, 2, 3)).sqrt()[:, None, None]
    change = torch.zeros_like(start, requires_grad=True)
    adam = torch.optim.Adam([change], lr=training.lr)
    seen = 0
    quiet = None if progress and ranks().is_first else True
    for step in tqdm(range(training.steps), desc="optimal ablation", unit="step", disable=quiet):
        batch = batches[step % len(batches)]
        lost = _turns(training.seed, seen, len(batch.images), one_less.num_senders).to(batch.images.device)
        seen += len(batch.images)
        with torch.enable_grad():
            logits = one_less.logits(batch.images, lost, start + scale * change)
            loss = training.metric(logits, batch.labels, batch.dense_logits)
            change.grad, = torch.autograd.grad(loss, change)
        adam.param_groups[0]["lr"] = training.lr * (1 - step / training.steps)
        adam.step()
    return (start + scale * change).detach()


def _turns(seed: int, seen: int, count: int, num_senders: int) -> Tensor:
    """The senders [count] of the next images: each sender once in every round, the rounds in random order."""
    rounds = range(seen // num_senders, (seen + count - 1) // num_senders + 1)
    order = torch.cat([permutation(seed, number, num_senders) for number in rounds])
    return order[seen % num_senders:][:count]


def _harm(one_less: _OneLess, constants: Tensor, batches: Sequence[_Batch], metric: Metric) -> Tensor:
    """[S] float64: the metric with each sender ablated, a sum over the first images."""
    harm, left = torch.zeros(one_less.num_senders, dtype=torch.float64), GUARD_IMAGES
    for batch in batches:
        images, dense_logits = batch.images[:left], batch.dense_logits[:left].double()
        labels = None if batch.labels is None else batch.labels[:left]
        for sender in range(one_less.num_senders):
            lost = torch.full((len(images),), sender, device=images.device)
            logits = one_less.logits(images, lost, constants)
            harm[sender] += float(metric(logits.double(), labels, dense_logits)) * len(images)
        left -= len(images)
        if not left:
            break
    return harm
