"""The stages of the edge-wise forward for a part of the model: the heads and MLP groups that have to run, and of the
last layer only the tokens that are read. What they compute is that of :class:`~vitsparse.model.edgewise.Edgewise`, up
to the order of additions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..circuit import Graph
from ..model.edgewise import group_bounds
from ..model.vit import LayerScale, ViT
from .route import Step


class Outputs:
    """What senders wrote, by position: ``body`` [S - n, N, T, D] of those before the last layer, and of the n senders
    of the last layer ``tail`` [n, N, t, D], where t is 1 if only the class token is read of it, else T."""

    def __init__(self, body: Tensor, tail: Tensor):
        self.body, self.tail = body, tail

    def __getitem__(self, position: int) -> Tensor:
        """[N, T or t, D] of one sender."""
        bodies = len(self.body)
        return self.body[position] if position < bodies else self.tail[position - bodies]

    def between(self, first: int, last: int) -> Tensor:
        """Those of positions ``first`` to ``last`` (excluded), which must be of one stage."""
        bodies = len(self.body)
        return self.body[first:last] if last <= bodies else self.tail[first - bodies: last - bodies]

    def mix(self, weights: Tensor, tokens: int) -> Tensor:
        """[G, N, tokens, D]: for each row of ``weights`` [G, n] the weighted sum of the first n senders."""
        count = min(weights.shape[1], len(self.body))
        total = torch.tensordot(weights[:, :count], self.body[:count, :, :tokens], dims=1)
        if count < weights.shape[1]:
            total += torch.tensordot(weights[:, count:], self.tail[: weights.shape[1] - count, :, :tokens], dims=1)
        return total


class Projection:
    """Queries, keys and values: one product for each reader, of all the parts and heads that it feeds.

    ``feeds`` are those of a :class:`Step`; ``wanted`` of them are computed, in that order. Gives [N, t, wanted, e].
    """

    def __init__(self, qkv: torch.nn.Linear, feeds: Sequence[Sequence[int]], wanted: Sequence[int], width: int):
        self._width = width
        served = [[block for block in blocks if block in set(wanted)] for blocks in feeds]
        weight, bias = qkv.weight.unflatten(0, (-1, width)), None
        if qkv.bias is not None:
            bias = qkv.bias.unflatten(0, (-1, width))
        self._products = [(weight[blocks].flatten(0, 1), None if bias is None else bias[blocks].flatten())
                          for blocks in served]
        order = [block for blocks in served for block in blocks]
        self._order = None if order == list(wanted) else [order.index(block) for block in wanted]

    def __call__(self, inputs: Tensor) -> Tensor:
        columns = [F.linear(x, *product) for x, product in zip(inputs, self._products, strict=True)]
        blocks = (torch.cat(columns, -1) if len(columns) > 1 else columns[0]).unflatten(-1, (-1, self._width))
        return blocks if self._order is None else blocks[:, :, self._order]


class AttentionPart:
    """Some heads of one attention. ``last``: only the class token of what they write is wanted."""

    def __init__(self, model: ViT, graph: Graph, step: Step, last: bool):
        block, heads = model.blocks[step.layer], model.num_heads
        self._norm, self._narrow = block.norm1, last
        self._merged = graph.granularity == "block"
        self._heads = list(range(heads)) if self._merged else [graph.sender_nodes[s].index for s in step.writes]
        width = model.config.head_dim
        q, k, v = ([part * heads + head for head in self._heads] for part in range(3))
        if last:
            self._q = Projection(block.attn.qkv, step.feeds, q, width)
            self._kv = Projection(block.attn.qkv, step.feeds, [*itertools.chain(*zip(k, v))], width)
        else:
            self._qkv = Projection(block.attn.qkv, step.feeds, [*itertools.chain(*zip(q, k, v))], width)
        weight = scaled(block.ls1, block.attn.proj.weight).T.unflatten(0, (heads, width))  # [H, e, D]
        self._out = weight.flatten(0, 1)[None] if self._merged else weight[self._heads]

    def __call__(self, inputs: Tensor, outputs: Tensor) -> None:
        """``inputs`` [G, N, T, D] of the readers; writes ``outputs`` [n, N, t, D]."""
        x = self._norm(inputs)
        if self._narrow:
            q = self._q(x[:, :, :1])
            k, v = self._kv(x).unflatten(2, (-1, 2)).unbind(3)
        else:
            q, k, v = self._qkv(x).unflatten(2, (-1, 3)).unbind(3)
        z = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))  # [N, H, t, e]
        z = z.permute(0, 2, 1, 3).flatten(2)[None] if self._merged else z.transpose(0, 1)
        torch.bmm(z.flatten(1, 2), self._out, out=outputs.flatten(1, 2))


class MlpPart:
    """Some groups of one MLP."""

    def __init__(self, model: ViT, graph: Graph, step: Step):
        block = model.blocks[step.layer]
        self._norm = block.norm2
        bounds = group_bounds(model.config.mlp_hidden, graph.mlp_groups)
        units = [range(*bounds[k: k + 2]) for k in (graph.sender_nodes[sender].index for sender in step.writes)]
        chosen = list(itertools.chain(*units))
        weight = scaled(block.ls2, block.mlp.fc2.weight).T
        if len(chosen) == model.config.mlp_hidden:
            self._in = (block.mlp.fc1.weight, block.mlp.fc1.bias)
        else:
            self._in = (block.mlp.fc1.weight[chosen], block.mlp.fc1.bias[chosen])
        self._out = [weight[part.start: part.stop] for part in units]
        self._bias = scaled(block.ls2, block.mlp.fc2.bias) / graph.mlp_groups

    def __call__(self, inputs: Tensor, outputs: Tensor) -> None:
        """``inputs`` [1, N, t, D] of the reader; writes ``outputs`` [n, N, t, D]."""
        hidden = F.gelu(F.linear(self._norm(inputs).flatten(0, 2), *self._in))
        first = 0
        for weight, output in zip(self._out, outputs, strict=True):
            torch.addmm(self._bias, hidden[:, first: first + len(weight)], weight, out=output.flatten(0, 1))
            first += len(weight)


def scaled(scale: torch.nn.Module, parameter: Tensor) -> Tensor:
    """A weight [D, M] or bias [D] with the LayerScale behind it multiplied in, if there is one."""
    if not isinstance(scale, LayerScale):
        return parameter
    return parameter * (scale.gamma[:, None] if parameter.ndim == 2 else scale.gamma)
