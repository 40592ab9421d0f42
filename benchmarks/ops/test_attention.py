"""attention against torch's scaled_dot_product_attention, reading q, k, v from one wide tensor as in a ViT."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops.shapes import LARGE, VITS, measure
from vitsparse.ops.attention import attention


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("vit", VITS | LARGE)
def test_attention(benchmark, vit, backend):
    benchmark.group = f"attention {vit}"
    images, tokens, width, heads = (VITS | LARGE)[vit]
    q, k, v = torch.randn(images, tokens, 3 * width).split(width, dim=2)
    scale = (width // heads) ** -0.5
    measure(benchmark, lambda: attention(q, k, v, heads, scale, backend), 4.0 * images * tokens * tokens * width)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("kept", ["all", "gated, all", "gated, half"])
def test_head_keep(benchmark, kept, backend):
    """Gates that keep all heads cost nothing; where they keep half, the kernel does half the work, torch all of it."""
    benchmark.group = f"attention 16 x 65x256, heads kept: {kept.removeprefix('gated, ')}"
    images, tokens, width, heads = VITS["16 x 65x256"]
    q, k, v = torch.randn(images, tokens, 3 * width).split(width, dim=2)
    gates = {"all": None, "gated, all": torch.ones(images, heads, dtype=torch.bool),
             "gated, half": torch.arange(images * heads).reshape(images, heads) % 2 == 0}
    run = lambda: attention(q, k, v, heads, (width // heads) ** -0.5, backend, gates[kept])  # noqa: E731
    measure(benchmark, run, 4.0 * images * tokens * tokens * width * (0.5 if "half" in kept else 1))
