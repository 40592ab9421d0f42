"""sum_norm of two and of eight senders against torch's additions and layer_norm."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops.cuda import TARGETS, like
from benchmarks.ops.shapes import VITS, measure
from vitsparse.ops.sum_norm import sum_norm

SHAPES = {name: VITS[name][:3] for name in VITS} | {"128 x 65x256": (128, 65, 256)}


@pytest.mark.parametrize(("device", "backend"), TARGETS)
@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_sum_norm(benchmark, shape, count, device, backend):
    benchmark.group = f"sum_norm {shape}, {count} senders, {device}"
    images, tokens, width = SHAPES[shape]
    senders = [torch.randn(images, tokens, width, **like(device)) for _ in range(count)]
    offset = torch.randn(tokens, width, **like(device))
    flops = (count + 6.0) * images * tokens * width
    measure(benchmark, lambda: sum_norm(senders, offset, 1e-6, backend), flops, device)
