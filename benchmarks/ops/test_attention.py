"""attention against torch's scaled_dot_product_attention, reading q, k, v from one wide tensor as in a ViT."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops.cuda import TARGETS, like
from benchmarks.ops.shapes import LARGE, VITS, measure
from vitsparse.ops.attention import attention

BATCHES = {"128 x 65x256": (128, 65, 256, 8), "128 x 65x256, half the heads": (128, 65, 128, 4),
           "65x256, half the heads": (1, 65, 128, 4), "32 x ViT-B/16": (32, 197, 768, 12)}  # for GPUs


def inputs(vit, device):
    images, tokens, width, heads = (VITS | LARGE | BATCHES)[vit]
    if vit in BATCHES and device == "cpu":
        pytest.skip("a batch for GPUs")
    return torch.randn(images, tokens, 3 * width, **like(device)).split(width, dim=2), heads, (width // heads) ** -0.5


@pytest.mark.parametrize(("device", "backend"), TARGETS)
@pytest.mark.parametrize("vit", VITS | LARGE | BATCHES)
def test_attention(benchmark, vit, device, backend):
    benchmark.group = f"attention {vit} on {device}"
    (q, k, v), heads, scale = inputs(vit, device)
    run = lambda: attention(q, k, v, heads, scale, backend)  # noqa: E731
    measure(benchmark, run, 4.0 * q.shape[1] * q.numel(), device)


@pytest.mark.parametrize(("device", "backend"), TARGETS)
@pytest.mark.parametrize("kept", ["all", "gated, all", "gated, half"])
def test_head_keep(benchmark, kept, device, backend):
    """Gates that keep all heads cost nothing; where they keep half, the kernels do half the work, torch all of it."""
    vit = "16 x 65x256" if device == "cpu" else "128 x 65x256"
    benchmark.group = f"attention {vit} on {device}, heads kept: {kept.removeprefix('gated, ')}"
    (q, k, v), heads, scale = inputs(vit, device)
    every = torch.arange(q.shape[0] * heads, device=device).reshape(-1, heads)
    gate = {"all": None, "gated, all": every >= 0, "gated, half": every % 2 == 0}[kept]
    run = lambda: attention(q, k, v, heads, scale, backend, gate)  # noqa: E731
    measure(benchmark, run, 4.0 * q.shape[1] * q.numel() * (0.5 if "half" in kept else 1), device)
