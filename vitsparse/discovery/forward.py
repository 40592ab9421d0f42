"""A route made ready to run on a model: per image, what cannot change is summed once, and the rest many times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..circuit import Graph
from ..model.vit import ViT
from .route import Route, Step
from .stages import AttentionPart, MlpPart, Outputs, scaled


class Shape:
    """How many senders come before the last layer and in all, and how many tokens are read of either."""

    def __init__(self, model: ViT, graph: Graph):
        self.depth, self.width, self.tokens = model.depth, model.config.embed_dim, model.config.num_tokens
        self.last_tokens = 1 if model.global_pool == "token" else self.tokens
        self.bodies, self.senders = graph.writers_before(model.depth - 1), len(graph.sender_nodes)

    def read(self, layer: int, kind: str) -> int:
        """How many tokens a reader reads. The last attention needs all keys and values; what comes after may not."""
        first = layer < self.depth - 1 or kind not in ("mlp", "logits")
        return self.tokens if first else self.last_tokens

    def outputs(self, images: int, like: Tensor) -> Outputs:
        """Zeros for what all senders write."""
        return Outputs(like.new_zeros(self.bodies, images, self.tokens, self.width),
                       like.new_zeros(self.senders - self.bodies, images, self.last_tokens, self.width))

    def split(self, stack: Tensor) -> Outputs:
        """The first senders' outputs [n, N, T, D] without the tokens that are not read."""
        return Outputs(stack[: self.bodies], stack[self.bodies:, :, : self.last_tokens])


class Workspace:
    """Memory for what a run writes, used again by the next: asking the system for as much each time is slow."""

    def __init__(self, shape: Shape, like: Tensor):
        self._shape, self._memory = shape, like.new_empty(0)
        self._changed, self._outputs = (), None

    def outputs(self, changed: Sequence[int], images: int) -> Outputs:
        """Room for the senders at ``changed``; what an earlier run wrote is forgotten."""
        shape = self._shape
        bodies = sum(position < shape.bodies for position in changed)
        body = (bodies, images, shape.tokens, shape.width)
        tail = (len(changed) - bodies, images, shape.last_tokens, shape.width)
        sizes = [math.prod(body), math.prod(tail)]
        if sum(sizes) > len(self._memory):
            self._memory = self._memory.new_empty(sum(sizes))
        first, second = self._memory[: sum(sizes)].split(sizes)
        self._changed, self._outputs = changed, Outputs(first.view(body), second.view(tail))
        return self._outputs

    def copy_to(self, base: Outputs) -> None:
        """Put what the last run wrote into the outputs of all senders."""
        for position, sender in enumerate(self._changed):
            base[sender].copy_(self._outputs[position])


@dataclass
class _Part:
    """One step: what runs (None: the logits), which tokens its inputs have, and the weights of their sums.

    ``moving`` [G, n] are those of the senders that run, ``fixed`` and ``cut`` [G, W] of the other kept and of the cut.
    """

    step: Step
    run: AttentionPart | MlpPart | None
    tokens: int
    moving: Tensor
    fixed: Tensor
    cut: Tensor
    bias: Tensor | float


class Forward:
    """The runs of one route: ``fixed`` is computed once for some images, ``logits`` for each of many inputs.

    r_j of every reader is split into what the route cannot change (kept senders that do not run, ablation values,
    biases) and the kept senders that run.
    """

    def __init__(self, model: ViT, graph: Graph, route: Route):
        self._model, self._graph, self.route = model, graph, route
        self._shape = Shape(model, graph)
        self._parts = [self._part(step) for step in route.steps]

    def fixed(self, base: Outputs, constants: Outputs) -> list[Tensor]:
        """What no run of the route changes of the inputs of each step, [G, B, t, D]."""
        return [self._sum(part.fixed, part.cut, part.tokens, part.bias, base, constants) for part in self._parts]

    def given(self, keep: np.ndarray, base: Outputs, constants: Outputs) -> Tensor:
        """r_j [B, t, D] of the reader whose input is handed in, under circuit ``keep``."""
        reader = self.route.given
        kept = self._weights(keep[None, reader.edges])
        tokens = self._shape.read(reader.layer, reader.kind)
        return self._sum(kept, 1 - kept, tokens, self._bias(reader.layer, reader.kind), base, constants)[0]

    def logits(self, fixed: list[Tensor], given: Tensor | None, work: Outputs) -> Tensor:
        """[K * B, classes] for K inputs ``given`` [K, B, t, D] (None: one run); ``work`` takes what senders write."""
        done = 0
        for part, still in zip(self._parts, fixed, strict=True):
            inputs = self._inputs(part, still, given, work)
            if part.run is None:
                return self._model.forward_head(self._model.norm(inputs[0]))
            count = len(part.step.writes)
            part.run(inputs, work.between(done, done + count))
            done += count
        raise AssertionError("a route ends at the logits")

    def _inputs(self, part: _Part, still: Tensor, given: Tensor | None, work: Outputs) -> Tensor:
        """[G, K * B, t, D]"""
        repeats = 1 if given is None else len(given)
        own = [given.flatten(0, 1)[None]] if part.step.given else []
        if len(still):
            still = still[:, None]
            if part.moving.shape[1]:
                summed = work.mix(part.moving, part.tokens)
                summed.unflatten(1, (repeats, -1)).add_(still)
            else:
                summed = still.expand(-1, repeats, -1, -1, -1).flatten(1, 2)
            own.append(summed)
        return torch.cat(own) if len(own) > 1 else own[0]

    def _part(self, step: Step) -> _Part:
        width = step.rows.shape[1]
        before = [sender for sender in self.route.changed if sender < width]
        still = step.rows.copy()
        still[:, before] = False
        needed = np.flatnonzero(still.any(0)).max(initial=-1) + 1  # where nothing is kept, nothing is read
        last = step.layer == self._shape.depth - 1 and self._shape.last_tokens == 1
        run = {"attn": lambda: AttentionPart(self._model, self._graph, step, last),
               "mlp": lambda: MlpPart(self._model, self._graph, step), "logits": lambda: None}[step.kind]()
        return _Part(step, run, self._shape.read(step.layer, step.kind), self._weights(step.rows[:, before]),
                     self._weights(still[:, :needed]), self._weights(~step.rows), self._bias(step.layer, step.kind))

    def _sum(self, kept: Tensor, cut: Tensor, tokens: int, bias: Tensor | float, base: Outputs,
             constants: Outputs) -> Tensor:
        return base.mix(kept, tokens).add_(constants.mix(cut, tokens).add_(bias))

    def _weights(self, rows: np.ndarray) -> Tensor:
        return torch.as_tensor(rows).to(self._model.pos_embed)

    def _bias(self, layer: int, kind: str) -> Tensor | float:
        """Sum of b_O (times LayerScale) of the attentions before a reader, [D]: these are not edges."""
        blocks = self._model.blocks[: layer + (kind == "mlp")]
        return sum((scaled(block.ls1, block.attn.proj.bias) for block in blocks), 0.0)

