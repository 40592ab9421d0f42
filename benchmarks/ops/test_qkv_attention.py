"""qkv_attention against the same in two steps: torch's product and its scaled_dot_product_attention."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops.cuda import CUDA_TARGETS, like
from benchmarks.ops.shapes import measure
from vitsparse.ops.attention import attention
from vitsparse.ops.linear import linear
from vitsparse.ops.qkv_attention import qkv_attention

SHAPES = {  # images, tokens, width, heads that are left, columns of a head
    "65x256, 4 of 8 heads": (1, 65, 256, 4, 32), "128 x 65x256, 4 of 8 heads": (128, 65, 256, 4, 32),
    "128 x 65x256": (128, 65, 256, 8, 32), "ViT-B/16": (1, 197, 768, 12, 64), "32 x ViT-B/16": (32, 197, 768, 12, 64),
}


def in_two_steps(x, weight, bias, heads, scale, backend):
    return attention(*linear(x, weight, bias, backend=backend).chunk(3, dim=2), heads, scale, backend)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "in two steps"])
@pytest.mark.parametrize(("device", "backend"), CUDA_TARGETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_qkv_attention(benchmark, shape, device, backend, fused):
    benchmark.group = f"qkv_attention {shape}"
    images, tokens, inputs, heads, head_dim = SHAPES[shape]
    width = heads * head_dim
    x = torch.randn(images, tokens, inputs, **like(device))
    weight, bias = inputs**-0.5 * torch.randn(3 * width, inputs, **like(device)), torch.randn(3 * width, **like(device))
    run = qkv_attention if fused else in_two_steps
    flops = images * tokens * (6.0 * inputs + 4.0 * tokens) * width
    measure(benchmark, lambda: run(x, weight, bias, heads, head_dim**-0.5, backend), flops, device)
