"""The sub-blocks of a ViT for the methods by gradient: forward, and a backward per reader, written by hand.

A sub-block is the attention or the MLP of a layer, or what comes behind the last one. ``forward`` takes the inputs of
its readers [U, b, T, D], with U = 1 where all readers see the same, and gives what the backward needs. ``backward``
takes the gradient of what its senders write [n, b, T, D] (n = 1 where it is the same for all) and gives that of each
reader's input, [R, b, T, D]: also where readers share an input, because an edge belongs to one of them.

With ``relevance`` the factors by which a LayerNorm and a GELU multiply, 1/deviation and GELU(x)/x, are held constant in
the backward, as :mod:`.relp` says; else it is the derivative.

By hand rather than by autograd for two reasons. The LayerNorm's backward is linear in its cotangent, so that of R
readers of one input costs R products and no R forwards. And nothing is kept for the gradients of parameters.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..circuit import Graph
from ..model.edgewise import group_bounds
from ..model.vit import ViT


class NormedLinear:
    """A LayerNorm and the linear map behind it as one map of the normalised input: ``xhat @ weight.T + bias``.

    The norm's weight, its bias and the centring are linear, so they are part of ``weight`` [R, O, D], one matrix for
    each of R readers, and ``bias`` [R, O].
    """

    def __init__(self, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None, relevance: bool):
        self._eps, self._relevance = norm.eps, relevance
        scaled = weight * norm.weight
        self.weight = scaled - scaled.mean(-1, keepdim=True)
        self.bias = weight @ norm.bias + (0.0 if bias is None else bias)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs [R, b, T, O], then xhat and 1/deviation of ``inputs`` for the backward."""
        xhat, _, rstd = torch.native_layer_norm(inputs, inputs.shape[-1:], None, None, self._eps)
        if len(xhat) == 1:  # one wide product for all readers
            wide = F.linear(xhat[0], self.weight.flatten(0, 1), self.bias.flatten())
            return rearrange(wide, "b t (r o) -> r b t o", r=len(self.weight)), xhat, rstd
        outputs = torch.baddbmm(self.bias[:, None], xhat.flatten(1, 2), self.weight.mT)
        return outputs.unflatten(1, xhat.shape[1:3]), xhat, rstd

    def backward(self, cotangent: Tensor, outputs: Tensor, xhat: Tensor, rstd: Tensor) -> Tensor:
        """The gradient of each reader's input, [R, b, T, D], from that of the outputs [R, b, T, O].

        ``rstd (c - xhat <c, xhat> / D)`` with the centred ``c = cotangent @ weight``; and <c, xhat> is the product of
        the cotangent with the outputs less their bias, which is far smaller.
        """
        cotangent = cotangent * rstd
        gradient = torch.bmm(cotangent.flatten(1, 2), self.weight).unflatten(1, cotangent.shape[1:3])
        if not self._relevance:
            along = (cotangent * (outputs - self.bias[:, None, None])).sum(-1, keepdim=True) / xhat.shape[-1]
            gradient.addcmul_(xhat, along, value=-1)
        return gradient


class AttentionBlock:
    """The attention of one layer: readers by granularity; writes its heads, or at ``"block"`` their sum.

    ``constant`` [D] is what it adds to the residual stream besides: its output bias, which is no edge.
    """

    def __init__(self, block: nn.Module, graph: Graph, relevance: bool):
        attn, heads = block.attn, graph.heads
        # (h1, p1) count the readers, (h2, p2) what each of them feeds: h1 * h2 heads, p1 * p2 = 3 of q, k, v.
        h1 = 1 if graph.granularity in ("layer", "block") else heads
        p1 = 3 if graph.granularity == "qkv" else 1
        self._axes = {"h1": h1, "p1": p1, "h2": heads // h1, "p2": 3 // p1}
        bias = None if attn.qkv.bias is None else self._by_reader(attn.qkv.bias)
        self._read = NormedLinear(block.norm1, self._by_reader(attn.qkv.weight), bias, relevance)
        self._write = rearrange(block.ls1(attn.proj.weight.mT), "(h e) d -> h e d", h=heads)
        self.constant = block.ls1(attn.proj.bias)
        self._is_one_sender = graph.granularity == "block"

    def _by_reader(self, parameter: Tensor) -> Tensor:
        return rearrange(parameter, "(p1 p2 h1 h2 e) ... -> (h1 p1) (p2 h2 e) ...", **self._axes)

    def forward(self, inputs: Tensor) -> tuple[Any, Tensor]:
        """What the backward needs, and z: the mixed values of each head [b, H, T, e]."""
        outputs, xhat, rstd = self._read.forward(inputs)
        with torch.enable_grad():
            outputs = outputs.detach().requires_grad_()
            q, k, v = rearrange(outputs, "(h1 p1) b t (p2 h2 e) -> (p1 p2) b (h1 h2) t e", **self._axes)
            z = F.scaled_dot_product_attention(q, k, v)
        return (outputs, xhat, rstd, z), z.detach()

    def senders(self, z: Tensor) -> Tensor:
        """What its senders write, [H or 1, b, T, D]."""
        if self._is_one_sender:
            return self.total(z)[None]
        heads = rearrange(z, "b h t e -> h (b t) e")
        return torch.bmm(heads, self._write).unflatten(1, (z.shape[0], z.shape[2]))

    def total(self, z: Tensor) -> Tensor:
        """The sum of its senders, [b, T, D]."""
        return rearrange(z, "b h t e -> b t (h e)") @ self._write.flatten(0, 1)

    def backward(self, gradient: Tensor, saved: Any) -> Tensor:
        outputs, xhat, rstd, z = saved
        if len(gradient) == 1:
            dz = rearrange(gradient[0] @ self._write.flatten(0, 1).mT, "b t (h e) -> b h t e", h=z.shape[1])
        else:
            dz = torch.bmm(gradient.flatten(1, 2), self._write.mT)
            dz = rearrange(dz, "h (b t) e -> b h t e", b=z.shape[0])
        cotangent, = torch.autograd.grad(z, outputs, dz)
        return self._read.backward(cotangent, outputs.detach(), xhat, rstd)


class MlpBlock:
    """The MLP of one layer: one reader; writes its groups of hidden units, and nothing besides."""

    def __init__(self, block: nn.Module, graph: Graph, relevance: bool):
        mlp, self._relevance = block.mlp, relevance
        self._read = NormedLinear(block.norm2, mlp.fc1.weight[None], mlp.fc1.bias[None], relevance)
        self._write = block.ls2(mlp.fc2.weight.mT)
        self._share = block.ls2(mlp.fc2.bias) / graph.mlp_groups
        self._groups = [slice(*pair) for pair in itertools.pairwise(group_bounds(len(self._write), graph.mlp_groups))]
        self.constant = torch.zeros_like(self._share)

    def forward(self, inputs: Tensor) -> tuple[Any, Tensor]:
        """What the backward needs, and the hidden units after the GELU [b, T, M]."""
        outputs, xhat, rstd = self._read.forward(inputs)
        return (outputs, xhat, rstd), F.gelu(outputs[0])

    def senders(self, hidden: Tensor) -> Tensor:
        """What its groups write, [G, b, T, D]."""
        if len(self._groups) == 1:
            return self.total(hidden)[None]
        return torch.stack([hidden[..., units] @ self._write[units] for units in self._groups]).add_(self._share)

    def total(self, hidden: Tensor) -> Tensor:
        """The sum of its groups, [b, T, D]."""
        return hidden @ self._write + self._share * len(self._groups)

    def backward(self, gradient: Tensor, saved: Any) -> Tensor:
        outputs, xhat, rstd = saved
        if len(gradient) == 1:
            dhidden = gradient @ self._write.mT
        else:
            dhidden = torch.cat([part @ self._write[units].mT
                                 for part, units in zip(gradient, self._groups, strict=True)], -1)[None]
        if self._relevance:
            cotangent = dhidden * (0.5 + 0.5 * torch.erf(outputs * 0.5**0.5))  # GELU(x) = x Phi(x)
        else:
            cotangent = torch.ops.aten.gelu_backward(dhidden, outputs)
        return self._read.backward(cotangent, outputs, xhat, rstd)


class Classifier:
    """What comes behind the last MLP: pooling, norm, logits. Its backward is autograd's."""

    def __init__(self, model: ViT, relevance: bool):
        self._model, self._relevance = model, relevance
        self._norm = model.norm if model.global_pool == "token" else model.fc_norm

    def forward(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """``residual`` [b, T, D] as a leaf, and the logits [b, K], which depend on it."""
        with torch.enable_grad():
            leaf = residual.detach().requires_grad_()
            pooled = leaf[:, 0] if self._model.global_pool == "token" else leaf[:, 1:].mean(1)
            return leaf, self._model.head(self._normalised(pooled))

    def _normalised(self, pooled: Tensor) -> Tensor:
        if not self._relevance:
            return self._norm(pooled)
        centred = pooled - pooled.mean(-1, keepdim=True)
        rstd = (centred.square().mean(-1, keepdim=True) + self._norm.eps).rsqrt().detach()
        return centred * rstd * self._norm.weight + self._norm.bias
