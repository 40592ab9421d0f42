"""The operator-level forward: a plain ViT with a switch on every edge between operators. It defines operator circuits.

It reads like the list of edges in :mod:`vitsparse.circuit.operator`: each line takes what an operator gave, through the
switch of an edge, into the next. A cut edge feeds zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..circuit.graph import Graph
from ..circuit.operator import block_edge
from ..errors import InputError
from .vit import Block, ViT

Switch = Callable[[str, Tensor], Tensor]


def operator_forward(model: ViT, images: Tensor, keep: Tensor, graph: Graph) -> Tensor:
    """Logits [B, classes]; ``keep`` is float [E], what each edge is multiplied by, and differentiable.

    Edges that carry only shapes are not looked at. Dropout and stochastic depth are left out.
    """
    def on(edge: str, value: Tensor) -> Tensor:
        return keep[graph.edge_index(edge)] * value

    x = _embedding(model, images, on)
    for layer, block in enumerate(model.blocks):
        x = _block(block, x, lambda edge, value, layer=layer: on(block_edge(layer, edge), value))
    x = model.norm(on(f"b{graph.depth - 1}.add_1->norm", x))
    pooled = model.forward_head(on("norm->getitem", x), pre_logits=True)  # for "avg": the mean patch, through fc_norm
    return on("head->output", model.head(on("getitem->head", pooled)))


def check_zero(ablation: Any) -> None:
    """Refuse what is no zero ablation: a cut operator edge feeds zeros, and nothing was measured on it."""
    if ablation.kind != "zero":
        raise InputError("a cut edge between operators feeds zeros", where="ablation", expected="Ablation.zero(model)",
                         found=ablation.kind, remedy="use zero ablation, or a graph of another granularity")


def _embedding(model: ViT, images: Tensor, on: Switch) -> Tensor:
    patches = model.patch_embed(on("x->proj", images))
    for edge in ("proj->flatten", "flatten->transpose", "transpose->cat"):  # only reshaped on the way
        patches = on(edge, patches)
    class_token = on("cls_token->expand", model.cls_token).expand(len(images), -1, -1)
    tokens = torch.cat([on("expand->cat", class_token), patches], dim=1)
    return on("cat->add", tokens) + on("pos_embed->add", model.pos_embed)


def _block(block: Block, x: Tensor, on: Switch) -> Tensor:
    attention = block.ls1(on("proj->proj_drop", _attention(block, x, on)))
    x = on("in->add", x) + on("drop_path->add", on("proj_drop->drop_path", attention))
    mlp = block.ls2(on("fc2->drop2", _mlp(block, x, on)))
    return on("add->add_1", x) + on("drop_path_1->add_1", on("drop2->drop_path_1", mlp))


def _attention(block: Block, x: Tensor, on: Switch) -> Tensor:
    heads = block.attn.num_heads
    qkv = block.attn.qkv(on("norm1->qkv", block.norm1(on("in->norm1", x))))
    qkv = rearrange(on("qkv->reshape", qkv), "b t (three h d) -> b t three h d", three=3, h=heads)
    permuted = rearrange(on("reshape->permute", qkv), "b t three h d -> three b h t d")
    q, k, v = (on(f"permute->{name}", part) for name, part in zip("qkv", permuted, strict=True))
    scores = on("q->matmul", q) @ on("transpose->matmul", on("k->transpose", k).mT)
    scaled = on("matmul->scale", scores) * q.shape[-1] ** -0.5
    pattern = on("softmax->attn_drop", on("scale->softmax", scaled).softmax(-1))
    mixed = on("attn_drop->matmul_1", pattern) @ on("v->matmul_1", v)
    mixed = on("transpose_1->reshape_1", on("matmul_1->transpose_1", mixed).transpose(1, 2))
    return block.attn.proj(on("reshape_1->proj", rearrange(mixed, "b t h d -> b t (h d)")))


def _mlp(block: Block, x: Tensor, on: Switch) -> Tensor:
    hidden = block.mlp.fc1(on("norm2->fc1", block.norm2(on("add->norm2", x))))
    return block.mlp.fc2(on("drop1->fc2", on("act->drop1", block.mlp.act(on("fc1->act", hidden)))))
