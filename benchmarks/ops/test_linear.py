"""linear on packed weights against torch's own (MKL), for the four products of a transformer block."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops.shapes import VITS, measure
from vitsparse.ops.linear import linear, linear_packed, pack_linear

PRODUCTS = {"qkv": (1, 3, "none"), "proj": (1, 1, "none"), "fc1": (1, 4, "gelu"), "fc2": (4, 1, "none")}


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("vit", VITS)
def test_linear(benchmark, vit, product, backend):
    benchmark.group = f"linear {vit} {product}"
    images, tokens, width, _ = VITS[vit]
    inputs, outputs, activation = PRODUCTS[product]
    x, weight = torch.randn(images, tokens, inputs * width), torch.randn(outputs * width, inputs * width)
    bias, packed = torch.randn(outputs * width), pack_linear(weight)
    runs = {"cpu": lambda: linear_packed(x, packed, outputs * width, bias, activation),
            "torch": lambda: linear(x, weight, bias, activation, "torch")}
    measure(benchmark, runs[backend], 2.0 * x.numel() * outputs * width)
