"""apply_pattern against a batched torch product."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops.shapes import VITS, measure
from vitsparse.ops.apply_pattern import apply_pattern


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("vit", VITS)
def test_apply_pattern(benchmark, vit, backend):
    benchmark.group = f"apply_pattern {vit}"
    images, tokens, width, heads = VITS[vit]
    pattern, v = torch.softmax(torch.randn(heads, tokens, tokens), -1), torch.randn(images, tokens, width)
    measure(benchmark, lambda: apply_pattern(pattern, v, backend), 2.0 * images * tokens * tokens * width)
