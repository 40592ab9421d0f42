"""Every op by torch's own fast operators: what runs anywhere, and what ONNX, OpenVINO and TensorRT can read."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def sum_norm(senders: Sequence[Tensor], offset: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """As :func:`vitsparse.backends.reference.sum_norm`."""
    total = sum(senders[1:], senders[0])
    total = total.contiguous() if offset is None else total + offset
    return total, F.layer_norm(total, total.shape[-1:], eps=eps)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """As :func:`vitsparse.backends.reference.linear`."""
    per_token = bias is not None and bias.dim() == 2
    y = F.linear(x, weight, None if per_token else bias)
    y = y + bias if per_token else y
    return F.gelu(y) if activation == "gelu" else y


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, head_keep: Tensor | None = None) -> Tensor:
    """As :func:`vitsparse.backends.reference.attention`."""
    images = max(x.shape[0] for x in (q, k, v))
    q, k, v = (rearrange(x, "b t (h d) -> b h t d", h=heads).expand(images, -1, -1, -1) for x in (q, k, v))
    result = F.scaled_dot_product_attention(q, k, v, scale=scale)
    result = result if head_keep is None else result.where(head_keep[:, :, None, None], 0)
    return rearrange(result, "b h t d -> b t (h d)")


def apply_pattern(pattern: Tensor, v: Tensor) -> Tensor:
    """As :func:`vitsparse.backends.reference.apply_pattern`."""
    return rearrange(pattern @ rearrange(v, "b t (h d) -> b h t d", h=pattern.shape[0]), "b h t d -> b t (h d)")


def mlp(
    senders: Sequence[Tensor], offset: Tensor | None, eps: float, weight1: Tensor, bias1: Tensor, weight2: Tensor,
    bias2: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`vitsparse.backends.reference.mlp`."""
    total, normed = sum_norm(senders, offset, eps)
    return linear(linear(normed, weight1, bias1, "gelu"), weight2, bias2), total


def qkv_attention(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, scale: float, head_keep: Tensor | None = None
) -> Tensor:
    """As :func:`vitsparse.backends.reference.qkv_attention`."""
    q, k, v = linear(x, weight, bias).chunk(3, dim=-1)
    return attention(q, k, v, heads, scale, head_keep)
