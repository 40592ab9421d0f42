"""One forward and one backward through the stages of a ViT, for a few images at a time.

Reader j of weights keep_ij gets ``sum_i keep_ij d_i + sum_i a_i + biases`` with d_i = s_i - a_i: what sender i writes
less what stands in for it. So the stack of the d_i is all that is kept of the senders, and the gradient of every edge
is <dM/dr_j, d_i>: one product of a stage's cotangents with a prefix of the stack. Where every edge of a stage has
weight 1 its readers share one running sum, the trunk, and what they send back adds up in one tensor as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..circuit import Graph
from ..evaluation.ablation import Ablation
from ..model.edgewise import ablation_constants, check_fits, corrupted
from ..model.vit import ViT
from .sub_blocks import AttentionBlock, Classifier, MlpBlock

PART_BYTES, SMALL_BYTES = {"cpu": 2**28, "cuda": 2**31}, 2**22
"""How much one part of a batch may hold at a time, apart from the model, by device; a part has at least one image. A
batch of more than SMALL_BYTES comes in three parts: then a part takes less than a forward and backward of the
whole batch in the dense model, although it holds what every sender writes."""

Rows = list[Tensor | None]


@dataclass(frozen=True)
class Part:
    """Some images of a batch: which ones, what ``input`` writes [b, T, D], the a_i [S, 1 or b, T, D], and room for the
    d_i [S, b, T, D], which :meth:`Passes.forward` fills (for a counterfactual ablation it is where the a_i are)."""

    images: slice
    embedded: Tensor
    ablated: Tensor
    differences: Tensor


@dataclass
class Trace:
    """What a forward leaves for its backward: of each stage, the leaf at which the logits begin, and the logits."""

    saved: list[Any]
    leaf: Tensor
    logits: Tensor


class Passes:
    """The stages of ``model``, whose weights are read now. Gradients must be off. ``relevance``: :mod:`.sub_blocks`."""

    def __init__(self, model: ViT, graph: Graph, ablation: Ablation, *, relevance: bool = False):
        check_fits(model, graph)
        self.model, self.graph, self.ablation = model, graph, ablation
        self._stages = [kind(block, graph, relevance) for block in model.blocks for kind in (AttentionBlock, MlpBlock)]
        self._logits = Classifier(model, relevance)
        self._readers = [[] for _ in range(len(self._stages) + 1)]
        for reader in graph.reader_nodes:
            self._readers[2 * reader.layer + (reader.kind == "mlp")].append(reader)
        self._constants = None
        if ablation.corrupt is None:
            self._constants = ablation_constants(model, model.pos_embed, graph=graph, ablation=ablation)
        self._room: Tensor | None = None

    @property
    def num_stages(self) -> int:
        """Attention and MLP of each layer; the logits come after."""
        return len(self._stages)

    @property
    def all_ones(self) -> Rows:
        """The rows of the dense model."""
        return [None] * (self.num_stages + 1)

    def writes(self, stage: int) -> slice:
        """Which senders a stage is; -1 is ``input``."""
        first = 0 if stage < 0 else self._readers[stage][0].fan_in
        after = self._readers[stage + 1][0].fan_in
        return slice(first, after)

    def edges(self, stage: int) -> slice:
        """The edges into the readers of a stage (the last one is the logits), in canonical order."""
        readers = self._readers[stage]
        return slice(readers[0].first_edge, readers[-1].edges.stop)

    def rows(self, keep: Tensor) -> Rows:
        """``keep`` [E] by stage: None where every edge has weight 1, [1, W] where all readers have the same weights,
        else [R, W]."""
        keep, rows = keep.detach().to(self.model.pos_embed), []
        for stage, readers in enumerate(self._readers):
            weights = keep[self.edges(stage)].view(len(readers), -1)
            equal = bool((weights == weights[0]).all())
            rows.append(None if equal and bool((weights[0] == 1).all()) else weights[:1] if equal else weights)
        return rows

    def parts(self, images: Tensor, labels: Tensor | None) -> Iterator[Part]:
        """``images`` [B, C, S, S] a few at a time. What a part holds is overwritten by the next one."""
        other = None if self.ablation.corrupt is None else corrupted(self.ablation, images, labels)
        size = self._images_at_a_time(len(images))
        for start in range(0, len(images), size):
            chosen = slice(start, min(start + size, len(images)))
            embedded = self.model.embed(images[chosen])
            room = self._room_for(len(embedded))
            if other is None:
                yield Part(chosen, embedded, self._constants, room)
            else:
                self._write_senders(self.model.embed(other[chosen]), room)
                yield Part(chosen, embedded, room, room)

    def forward(self, part: Part, rows: Rows) -> Trace:
        """The circuit of ``rows`` on a part; fills ``part.differences``."""
        stack, ablated = part.differences, part.ablated
        # What is cloned is overwritten where they are the same.
        trunk, base, saved = part.embedded, ablated[0].clone(), []
        torch.sub(trunk, base, out=stack[0])
        for index, stage in enumerate(self._stages):
            kept, inner = stage.forward(self._inputs(trunk, base, stack, rows[index]))
            saved.append(kept)
            outputs, own = stage.senders(inner), self.writes(index)
            trunk = trunk + (outputs.sum(0) + stage.constant)
            base = base + (ablated[own].sum(0) + stage.constant)
            torch.sub(outputs, ablated[own], out=stack[own])
        return Trace(saved, *self._logits.forward(self._inputs(trunk, base, stack, rows[-1])[0]))

    def resume(self, trunk: Tensor, first_stage: int = 0) -> Trace:
        """The dense model from stage ``first_stage`` on, given the residual stream before it [b, T, D]."""
        saved: list[Any] = [None] * first_stage
        for stage in self._stages[first_stage:]:
            kept, inner = stage.forward(trunk[None])
            saved.append(kept)
            trunk = trunk + (stage.total(inner) + stage.constant)
        return Trace(saved, *self._logits.forward(trunk))

    def residuals(self, embedded: Tensor) -> Iterator[Tensor]:
        """The residual stream [b, T, D] that each stage of the dense model reads, the logits last."""
        yield (trunk := embedded)
        for stage in self._stages:
            _, inner = stage.forward(trunk[None])
            yield (trunk := trunk + (stage.total(inner) + stage.constant))

    def backward(self, trace: Trace, value: Tensor, differences: Tensor, rows: Rows | None = None) -> Tensor:
        """[E] float64: <dvalue/dr_j, d_i> for every edge, 0 before the stage at which ``trace`` begins.

        ``value`` was computed from ``trace.logits`` with gradients on. ``rows`` as in the forward; None: all ones.
        """
        return self.backward_each(trace, value, differences, rows).sum(0)

    def backward_each(self, trace: Trace, value: Tensor, differences: Tensor, rows: Rows | None = None) -> Tensor:
        """:meth:`backward` image by image, [b, E] float64."""
        rows = self.all_ones if rows is None else rows
        scores = differences.new_zeros((differences.shape[1], self.graph.num_edges), dtype=torch.float64)
        shared = torch.zeros_like(trace.leaf)  # dvalue/ds_i through readers of weight 1: the same for all i so far
        own = torch.zeros_like(differences) if any(row is not None for row in rows) else None
        gradient = torch.autograd.grad(value, trace.leaf)[0][None]
        for stage in reversed(range(self.num_stages + 1)):
            if stage < self.num_stages:
                if trace.saved[stage] is None:
                    break
                outputs = shared[None] if own is None else own[self.writes(stage)] + shared
                gradient = self._stages[stage].backward(outputs, trace.saved[stage])
                trace.saved[stage] = None
            before = differences[: self._readers[stage][0].fan_in]
            scores[:, self.edges(stage)] = _inner_products(gradient, before)
            row = rows[stage]
            if row is None:
                shared += gradient.sum(0)
            else:
                gradient = gradient if len(row) == len(gradient) else gradient.sum(0, keepdim=True)
                own[: len(before)].flatten(1).addmm_(row.mT, gradient.flatten(1))
        return scores

    def _inputs(self, trunk: Tensor, base: Tensor, stack: Tensor, row: Tensor | None) -> Tensor:
        if row is None:
            return trunk[None]
        return torch.tensordot(row, stack[: row.shape[1]], dims=1) + base

    def _write_senders(self, trunk: Tensor, stack: Tensor) -> None:
        """What every sender writes in the dense run."""
        stack[0] = trunk
        for index, stage in enumerate(self._stages):
            _, inner = stage.forward(trunk[None])
            outputs = stage.senders(inner)
            stack[self.writes(index)] = outputs
            trunk = trunk + (outputs.sum(0) + stage.constant)

    def _images_at_a_time(self, batch: int) -> int:
        config, like = self.model.config, self.model.pos_embed
        tensors = len(self.graph.senders) + 20 * config.depth  # [T, D] of one image; 20: what a layer's backward needs
        per_image = tensors * config.num_tokens * config.embed_dim * like.element_size()
        third = max((batch + 2) // 3, SMALL_BYTES // per_image)
        return max(1, min(third, PART_BYTES[like.device.type] // per_image))

    def _room_for(self, count: int) -> Tensor:
        shape = (len(self.graph.senders), count, self.model.config.num_tokens, self.model.config.embed_dim)
        if self._room is None or self._room.shape[1] < count:
            self._room = self.model.pos_embed.new_empty(shape)
        return self._room if self._room.shape == shape else self._room.view(-1)[: torch.Size(shape).numel()].view(shape)


def _inner_products(gradients: Tensor, differences: Tensor) -> Tensor:
    """[b, R * W] float64: <g_j, d_i> of [R, b, T, D] and [W, b, T, D], for each image."""
    products = torch.bmm(gradients.flatten(2).transpose(0, 1), differences.flatten(2).permute(1, 2, 0))
    return products.double().flatten(1)
