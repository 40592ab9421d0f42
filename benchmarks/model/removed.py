"""Baseline C: the nodes of a circuit physically removed, as a structured pruner leaves a ViT; no edge is honoured.

Each layer has a width of its own: dead heads lose their rows of QKV and columns of the projection, dead MLP groups
their hidden units, and sub-blocks of which nothing lives are not there. What remains is a plain residual network. It
computes what the circuit does under zero ablation if the circuit keeps every edge between its live nodes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.model.circuits import live_nodes
from vitsparse import Circuit
from vitsparse.model.edgewise import group_bounds
from vitsparse.model.vit import Block, ViT


class Removed(nn.Module):
    """``model`` (its pool the class token) without the nodes of ``circuit`` that are not live: images [B, C, S, S] to
    logits [B, classes].

    LayerScale is folded into the weights. The output bias of an attention stays when its heads go; it moves into the
    bias that was written before it, since nobody reads in between.
    """

    def __init__(self, model: ViT, circuit: Circuit):
        super().__init__()
        live = [node for node, lives in zip(circuit.graph.sender_nodes, live_nodes(circuit), strict=True) if lives]
        self.patches, self.norm, self.head = model.patch_embed.proj, model.norm, model.head
        self.positions = nn.Parameter(model.pos_embed.detach() + 0)
        self.class_token = nn.Parameter(model.cls_token.detach() + 0)
        parts: list[nn.Module] = []
        written = self.positions  # what holds the last bias that was added to the stream
        for layer, block in enumerate(model.blocks):
            heads = [node.index for node in live if (node.kind, node.layer) == ("head", layer)]
            groups = [node.index for node in live if (node.kind, node.layer) == ("mlp", layer)]
            if heads:
                parts.append(Heads(block, heads))
                written = parts[-1].proj.bias
            else:
                written.data += scale_of(block.ls1) * block.attn.proj.bias.detach()
            if groups:
                parts.append(Units(block, groups, circuit.graph.mlp_groups))
                written = parts[-1].fc2.bias
        self.parts = nn.ModuleList(parts)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1) + self.positions
        for part in self.parts:
            x = x + part(x)
        return self.head(self.norm(x)[:, 0])


class Heads(nn.Module):
    """The attention of ``block`` with the given heads alone."""

    def __init__(self, block: Block, heads: list[int]):
        super().__init__()
        attention, width = block.attn, block.attn.proj.in_features // block.attn.num_heads
        self.norm, self.heads = block.norm1, len(heads)
        rows = (torch.tensor(heads)[:, None] * width + torch.arange(width)).flatten()
        parts = torch.cat([rows + part * attention.proj.in_features for part in range(3)])
        bias = attention.qkv.bias
        self.qkv = _linear(attention.qkv.weight[parts], None if bias is None else bias[parts])
        scale = scale_of(block.ls1)
        self.proj = _linear(scale[:, None] * attention.proj.weight[:, rows], scale * attention.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Units(nn.Module):
    """The MLP of ``block`` with the given groups of hidden units alone, and their share of the output bias."""

    def __init__(self, block: Block, groups: list[int], of: int):
        super().__init__()
        mlp = block.mlp
        self.norm = block.norm2
        bounds = group_bounds(mlp.fc1.out_features, of)
        units = torch.cat([torch.arange(bounds[group], bounds[group + 1]) for group in groups])
        self.fc1 = _linear(mlp.fc1.weight[units], mlp.fc1.bias[units])
        scale = scale_of(block.ls2)
        self.fc2 = _linear(scale[:, None] * mlp.fc2.weight[:, units], scale * mlp.fc2.bias * (len(groups) / of))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer with copies of these."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def scale_of(layer_scale: nn.Module) -> Tensor:
    """LayerScale's factors, or 1."""
    gamma = getattr(layer_scale, "gamma", None)
    return torch.ones(1) if gamma is None else gamma.detach()
