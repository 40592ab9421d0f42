"""linear on packed weights against torch's own (MKL): the four products of a transformer block, and narrow ones."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops.shapes import LARGE, VITS, measure
from vitsparse.ops.linear import linear, linear_packed, pack_linear

PRODUCTS = {"qkv": (1, 3, "none"), "proj": (1, 1, "none"), "fc1": (1, 4, "gelu"), "fc2": (4, 1, "none")}


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("vit", VITS | LARGE)
def test_linear(benchmark, vit, product, backend):
    benchmark.group = f"linear {vit} {product}"
    images, tokens, width, _ = (VITS | LARGE)[vit]
    inputs, outputs, activation = PRODUCTS[product]
    run(benchmark, (images, tokens, inputs * width, outputs * width), activation, backend)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("sizes", [(32, 256), (96, 256), (256, 32), (256, 96)], ids="{0[0]} to {0[1]}".format)
def test_narrow_linear(benchmark, sizes, backend):
    """What a few live heads need: a head's 32 columns into the stream, or the inputs of one."""
    benchmark.group = "linear 65 rows, {} to {}".format(*sizes)
    run(benchmark, (1, 65, *sizes), "none", backend)


def run(benchmark, sizes: tuple[int, int, int, int], activation: str, backend: str) -> None:
    images, tokens, inputs, outputs = sizes
    x, weight, bias = torch.randn(images, tokens, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    packed = pack_linear(weight)
    runs = {"cpu": lambda: linear_packed(x, packed, outputs, bias, activation),
            "torch": lambda: linear(x, weight, bias, activation, "torch")}
    measure(benchmark, runs[backend], 2.0 * x.numel() * outputs)
