"""apply_pattern against a batched torch product."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops.cuda import TARGETS, like
from benchmarks.ops.shapes import VITS, measure
from vitsparse.ops.apply_pattern import apply_pattern


@pytest.mark.parametrize(("device", "backend"), TARGETS)
@pytest.mark.parametrize("vit", VITS)
def test_apply_pattern(benchmark, vit, device, backend):
    benchmark.group = f"apply_pattern {vit}"
    images, tokens, width, heads = VITS[vit]
    pattern = torch.softmax(torch.randn(heads, tokens, tokens, **like(device)), -1)
    v = torch.randn(images, tokens, width, **like(device))
    measure(benchmark, lambda: apply_pattern(pattern, v, backend), 2.0 * images * tokens * tokens * width, device)
