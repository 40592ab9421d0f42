"""The emulated device: it computes what a GPU would, and does not let faults pass."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_noop(ops_on, dtype):
    x = torch.randn(3, 1001, device=ops_on.device).to(dtype)
    assert torch.equal(ops_on.noop(x), x)
