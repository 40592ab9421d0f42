"""Every op in plain torch: slow, differentiable, any device and dtype. This is the definition of correct."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import einsum, rearrange, reduce
from torch import Tensor


def noop(x: Tensor) -> Tensor:
    """A contiguous copy of ``x``."""
    return x.clone(memory_format=torch.contiguous_format)


def sum_norm(senders: Sequence[Tensor], offset: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """r = offset + sum of the senders, and (r - mean) / sqrt(var + eps) over the last dimension (biased variance)."""
    total = sum(senders[1:], senders[0])
    total = total if offset is None else total + offset
    centred = total - reduce(total, "b t d -> b t 1", "mean")
    variance = reduce(centred.square(), "b t d -> b t 1", "mean")
    return total.contiguous(), centred / torch.sqrt(variance + eps)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """activation(x W^T + b); ``"gelu"`` is the exact one, x Phi(x)."""
    y = einsum(x, weight, "... i, o i -> ... o")
    y = y if bias is None else y + bias
    return y * (1 + torch.erf(y / math.sqrt(2))) / 2 if activation == "gelu" else y


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, head_keep: Tensor | None = None) -> Tensor:
    """softmax(scale q k^T) v for each image and head, zeros where ``head_keep`` [B, heads] (bool) says no.

    A batch of 1 stands for every image.
    """
    q, k, v = (rearrange(x, "b t (h d) -> b h t d", h=heads) for x in (q, k, v))
    images = max(x.shape[0] for x in (q, k, v))
    q, k, v = (x.expand(images, *x.shape[1:]) for x in (q, k, v))
    pattern = torch.softmax(scale * einsum(q, k, "b h i d, b h j d -> b h i j"), dim=-1)
    result = einsum(pattern, v, "b h i j, b h j d -> b h i d")
    result = result if head_keep is None else result.where(head_keep[:, :, None, None], 0)
    return rearrange(result, "b h i d -> b i (h d)")


def apply_pattern(pattern: Tensor, v: Tensor) -> Tensor:
    """pattern v for each image and head, with one pattern for all images."""
    v = rearrange(v, "b t (h d) -> b h t d", h=pattern.shape[0])
    return rearrange(einsum(pattern, v, "h i j, b h j d -> b h i d"), "b h i d -> b i (h d)")


def mlp(
    senders: Sequence[Tensor], offset: Tensor | None, eps: float, weight1: Tensor, bias1: Tensor, weight2: Tensor,
    bias2: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """gelu(norm(r) W1^T + b1) W2^T + b2, and r = offset + sum of the senders."""
    total, normed = sum_norm(senders, offset, eps)
    return linear(linear(normed, weight1, bias1, "gelu"), weight2, bias2), total


def qkv_attention(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, scale: float, head_keep: Tensor | None = None
) -> Tensor:
    """Attention of q, k, v = x W^T + b, the rows of W in this order, each of all heads."""
    q, k, v = rearrange(linear(x, weight, bias), "b t (three c) -> three b t c", three=3)
    return attention(q, k, v, heads, scale, head_keep)
