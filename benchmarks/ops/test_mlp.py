"""mlp of two senders: in one op (torch: its fast operators), and as the same backend's sum_norm and two products."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops.cuda import CUDA_TARGETS, like
from benchmarks.ops.shapes import measure
from vitsparse.ops.linear import linear
from vitsparse.ops.mlp import mlp
from vitsparse.ops.sum_norm import sum_norm

SHAPES = {f"{images} x 65x256, {hidden} hidden": (images, 65, 256, hidden)
          for images in (1, 8, 128) for hidden in (256, 1024)}


@pytest.mark.parametrize(("device", "backend"), CUDA_TARGETS)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "steps"])
@pytest.mark.parametrize("shape", SHAPES)
def test_mlp(benchmark, shape, fused, device, backend):
    benchmark.group = f"mlp {shape}, {device}"
    images, tokens, width, hidden = SHAPES[shape]
    senders = [torch.randn(images, tokens, width, **like(device)) for _ in range(2)]
    weight1, weight2 = (torch.randn(size, **like(device)) / 16 for size in ((hidden, width), (width, hidden)))
    bias1, bias2 = torch.randn(hidden, **like(device)), torch.randn(width, **like(device))

    def steps():
        total, normed = sum_norm(senders, None, 1e-6, backend)
        return linear(linear(normed, weight1, bias1, "gelu", backend), weight2, bias2, backend=backend), total

    def one():
        return mlp(senders, None, 1e-6, weight1, bias1, weight2, bias2, backend)

    measure(benchmark, one if fused else steps, 4.0 * images * tokens * width * hidden, device)
