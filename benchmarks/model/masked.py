"""Baseline E: the circuit as a mask on every edge, in plain PyTorch and done well; nothing is removed.

All senders write into one buffer that is allocated once; one product of a layer's rows of the mask with that buffer
makes the inputs of all its readers; the norms and the QKV products of all heads are batched. Under zero ablation, where
nothing has to stand in for a cut edge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.model.removed import scale_of
from vitsparse import Circuit, InputError
from vitsparse.model.vit import Block, ViT

Compiler = Callable[[Callable[..., None]], Callable[..., None]]
Norm = tuple[Tensor, Tensor, float]


CHUNK = 8
"""Images at a time on a CPU, at most: with 8 or 16 the buffer stays in its cache, and a batch of 32 takes 0.85 of the
time."""


class Masked(nn.Module):
    """``model`` with the edges of ``circuit`` (granularity ``head``, whole MLPs) as a mask, for ``images`` a chunk:
    images [B, C, S, S] to logits [B, classes].

    ``compiler`` is applied to what an attention and what an MLP does behind its sum. All layers being alike, one
    compilation of each serves them all; of the whole model it takes minutes. The sums are single products, which a
    compiler leaves as they are.
    """

    def __init__(self, model: ViT, circuit: Circuit, images: int, compiler: Compiler = lambda function: function):
        super().__init__()
        graph, config = circuit.graph, model.config
        if graph.granularity != "head" or graph.mlp_groups != 1:
            raise InputError("this baseline masks the edges of whole heads and MLPs", where="circuit.graph",
                             expected="granularity 'head', 1 MLP group", found=graph)
        self.model, self.graph = model, graph
        self.attention, self.mlp = compiler(attention), compiler(mlp)
        self.buffer = torch.zeros(len(graph.senders), images, config.num_tokens, config.embed_dim)
        keep = torch.tensor(circuit.keep, dtype=torch.float32)
        rows = [keep[reader.edges] for reader in graph.reader_nodes]
        self.masks = []  # of each stage: [readers, senders before it]
        for first in range(0, len(rows) - 1, graph.heads + 1):
            self.masks += [torch.stack(rows[first: first + graph.heads]), rows[first + graph.heads][None]]
        self.masks.append(rows[-1][None])
        self.heads = [_heads_of(block) for block in model.blocks]
        self.units = [_units_of(block) for block in model.blocks]
        self.biases = [torch.zeros(config.embed_dim)]  # of each layer: the sum of the b_O before it
        for block in model.blocks:
            self.biases.append(self.biases[-1] + scale_of(block.ls1) * block.attn.proj.bias.detach())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Masked:
        """Also moves and casts what was made of the parameters."""
        super()._apply(fn, recurse)
        self.buffer = fn(self.buffer)
        self.masks, self.heads, self.units, self.biases = _each(fn, (self.masks, self.heads, self.units, self.biases))
        return self

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self._chunk(chunk) for chunk in images.split(self.buffer.shape[1])])

    def _chunk(self, images: Tensor) -> Tensor:
        self.buffer[0] = self.model.embed(images)
        for layer in range(self.graph.depth):
            before = self.graph.writers_before(layer)
            after = before + self.graph.heads
            self.attention(self._sums(2 * layer), self.biases[layer], *self.heads[layer], self.buffer[before:after])
            self.mlp(self._sums(2 * layer + 1)[0], self.biases[layer + 1], *self.units[layer], self.buffer[after])
        return self.model.forward_head(self.model.norm(self._sums(-1)[0] + self.biases[-1]))

    def _sums(self, stage: int) -> Tensor:
        """[readers, B, T, D]"""
        mask = self.masks[stage]
        return torch.tensordot(mask, self.buffer[: mask.shape[1]], dims=1)


def attention(sums: Tensor, bias: Tensor, norm: Norm, qkv: tuple[Tensor, Tensor], out: Tensor, into: Tensor) -> None:
    """What the heads write, ``into`` [H, B, T, D], from the sums that they read [H, B, T, D] without b_O.

    ``qkv`` is [H, D, 3 e] and [H, 1, 3 e], ``out`` [H, e, D].
    """
    heads, images, tokens, width = sums.shape
    x = F.layer_norm(sums + bias, (width,), *norm).view(heads, images * tokens, width)
    q, k, v = torch.baddbmm(qkv[1], x, qkv[0]).view(heads, images, tokens, 3, -1).unbind(3)
    z = F.scaled_dot_product_attention(q, k, v).view(heads, images * tokens, -1)
    torch.bmm(z, out, out=into.view(heads, images * tokens, width))


def mlp(total: Tensor, bias: Tensor, norm: Norm, units: tuple[Tensor, Tensor, Tensor, Tensor], into: Tensor) -> None:
    """What an MLP writes, ``into`` [B, T, D], from the sum that it reads [B, T, D] without b_O."""
    width = total.shape[-1]
    x = F.layer_norm(total + bias, (width,), *norm).view(-1, width)
    hidden = F.gelu(torch.addmm(units[1], x, units[0]))
    torch.addmm(units[3], hidden, units[2], out=into.view(-1, width))


def _heads_of(block: Block) -> tuple[Any, ...]:
    """Norm, QKV and output weights of an attention, head by head."""
    heads, qkv, proj = block.attn.num_heads, block.attn.qkv, block.attn.proj.weight.detach()
    weight = qkv.weight.detach().unflatten(0, (3, heads, -1)).permute(1, 3, 0, 2).flatten(2).contiguous()
    bias = torch.zeros(len(qkv.weight)) if qkv.bias is None else qkv.bias.detach()
    bias = bias.unflatten(0, (3, heads, 1, -1)).transpose(0, 1).flatten(1).unsqueeze(1).contiguous()
    out = (scale_of(block.ls1)[:, None] * proj).T.unflatten(0, (heads, -1)).contiguous()
    return _norm_of(block.norm1), (weight, bias), out


def _units_of(block: Block) -> tuple[Any, ...]:
    """Norm and weights of an MLP, transposed."""
    fc1, fc2, scale = block.mlp.fc1, block.mlp.fc2, scale_of(block.ls2)
    units = (fc1.weight.detach().T, fc1.bias.detach(), (scale[:, None] * fc2.weight.detach()).T,
             scale * fc2.bias.detach())
    return _norm_of(block.norm2), units


def _each(fn: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``fn`` of every tensor in nested lists and tuples."""
    if isinstance(value, list | tuple):
        return type(value)(_each(fn, part) for part in value)
    return fn(value) if isinstance(value, Tensor) else value


def _norm_of(norm: nn.LayerNorm) -> Norm:
    return norm.weight.detach(), norm.bias.detach(), norm.eps
