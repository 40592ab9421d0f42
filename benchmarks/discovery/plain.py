"""The plain way, done well: the baselines of the discovery benchmarks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitsparse import Ablation
from vitsparse.circuit import Graph
from vitsparse.model.vit import ViT


class EdgeMasked:
    """The edge-masked model of ``head`` graphs in plain PyTorch: one preallocated buffer of what senders write, one
    mask product per layer for all its readers, batched norm and QKV.

    The buffer holds s_i - a_i, so that r_j = sum_i keep_ij (s_i - a_i) + sum_i a_i + biases takes one product, and the
    rest of the sum is a constant.
    """

    def __init__(self, model: ViT, graph: Graph, ablation: Ablation, images: int):
        self.model, self.graph = model, graph
        constants = ablation.stacked(graph).to(model.pos_embed)
        self.buffer = constants.new_empty(len(constants), images, *constants.shape[1:])
        self.ablated = constants[:, None]
        heads, width = model.num_heads, model.config.head_dim
        self.offsets, bias = [], 0.0
        for layer, block in enumerate(model.blocks):
            before = graph.writers_before(layer)
            self.offsets.append(constants[:before].sum(0) + bias)
            bias = bias + block.attn.proj.bias
            self.offsets.append(constants[:before + heads].sum(0) + bias)
        self.offsets.append(constants.sum(0) + bias)
        self.qkv = [block.attn.qkv.weight.unflatten(0, (3, heads, width)).permute(1, 3, 0, 2).flatten(2).contiguous()
                    for block in model.blocks]  # [H, D, 3 e]
        self.qkv_bias = [block.attn.qkv.bias.unflatten(0, (3, heads, 1, width)).transpose(0, 1).flatten(1).unsqueeze(1)
                         for block in model.blocks]
        self.out = [block.attn.proj.weight.T.unflatten(0, (heads, width)).contiguous() for block in model.blocks]

    def __call__(self, images: Tensor, keep: Tensor) -> Tensor:
        """Logits [B, classes] for ``keep``, float [E]."""
        heads, edge = self.model.num_heads, 0
        self.buffer[0] = self.model.embed(images) - self.ablated[0]
        for layer, block in enumerate(self.model.blocks):
            before = self.graph.writers_before(layer)
            rows = keep[edge: edge + heads * before].view(heads, before)
            edge += heads * before
            x = block.norm1(self._sum(rows, 2 * layer)).flatten(1, 2)
            q, k, v = torch.baddbmm(self.qkv_bias[layer], x, self.qkv[layer]).view(
                heads, len(images), -1, 3, self.model.config.head_dim).unbind(3)
            z = F.scaled_dot_product_attention(q, k, v).flatten(1, 2)
            after = before + heads
            written = torch.bmm(z, self.out[layer]).view_as(self.buffer[before:after])
            torch.sub(written, self.ablated[before:after], out=self.buffer[before:after])
            rows = keep[edge: edge + after].view(1, after)
            edge += after
            hidden = F.gelu(block.mlp.fc1(block.norm2(self._sum(rows, 2 * layer + 1)[0])))
            torch.sub(block.mlp.fc2(hidden), self.ablated[after], out=self.buffer[after])
        residual = self._sum(keep[None, edge:], 2 * self.model.depth)[0]
        return self.model.forward_head(self.model.norm(residual))

    def _sum(self, rows: Tensor, stage: int) -> Tensor:
        """[R, B, T, D]"""
        return torch.tensordot(rows, self.buffer[: rows.shape[1]], dims=1).add_(self.offsets[stage])
