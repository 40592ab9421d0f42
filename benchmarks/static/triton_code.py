"""What Triton makes of our kernels, compiled without a GPU for the calls of tests/triton/cases.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

CAPABILITIES = (86, 90)


def rows() -> Iterator[dict[str, Any]]:
    """A row for each launch in float16, with the first of the tiles that the tuner may choose."""
    from tests.triton.ahead import compiling
    from tests.triton.cases import aot_cases

    for capability in CAPABILITIES:
        for case in aot_cases():
            with compiling(capability) as found:
                case.mapped(torch.Tensor.half).launch()
            for launch in found:
                yield {"op": case.op, "case": case.label, "arch": str(capability), "kernel": launch.kernel,
                       "tiles": launch.tiles, "registers": launch.registers, "stack": launch.stack,
                       "shared": launch.shared, "products": launch.products}
