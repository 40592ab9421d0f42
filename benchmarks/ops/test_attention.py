"""attention against torch's scaled_dot_product_attention, reading q, k, v from one wide tensor as in a ViT."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops.shapes import VITS, measure
from vitsparse.ops.attention import attention


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("vit", VITS)
def test_attention(benchmark, vit, backend):
    benchmark.group = f"attention {vit}"
    images, tokens, width, heads = VITS[vit]
    q, k, v = torch.randn(images, tokens, 3 * width).split(width, dim=2)
    scale = (width // heads) ** -0.5
    measure(benchmark, lambda: attention(q, k, v, heads, scale, backend), 4.0 * images * tokens * tokens * width)
