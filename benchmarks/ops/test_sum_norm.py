"""sum_norm of two and of eight senders against torch's additions and layer_norm."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops.shapes import VITS, measure
from vitsparse.ops.sum_norm import sum_norm


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("vit", VITS)
def test_sum_norm(benchmark, vit, count, backend):
    benchmark.group = f"sum_norm {vit}, {count} senders"
    images, tokens, width, _ = VITS[vit]
    senders, offset = [torch.randn(images, tokens, width) for _ in range(count)], torch.randn(tokens, width)
    flops = (count + 6.0) * images * tokens * width
    measure(benchmark, lambda: sum_norm(senders, offset, 1e-6, backend), flops)
