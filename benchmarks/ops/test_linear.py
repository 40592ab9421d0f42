"""linear against torch's own (MKL, cuBLAS): the four products of a transformer block, and narrow ones.

On the CPU in float32 on packed weights, on a GPU in float16.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.ops.cuda import CUDA_TARGETS, TARGETS, like
from benchmarks.ops.shapes import LARGE, VITS, measure
from vitsparse.ops.linear import linear, linear_packed, pack_linear

PRODUCTS = {"qkv": (1, 3, "none"), "proj": (1, 1, "none"), "fc1": (1, 4, "gelu"), "fc2": (4, 1, "none")}
BATCHES = {"128 x 65x256": (128, 65, 256, 8), "64 x ViT-B/16": (64, 197, 768, 12)}  # of a GPU


@pytest.mark.parametrize(("device", "backend"), TARGETS)
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("vit", VITS | LARGE)
def test_linear(benchmark, vit, product, device, backend):
    run_product(benchmark, vit, product, (device, backend))


@pytest.mark.parametrize(("device", "backend"), CUDA_TARGETS)
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("vit", BATCHES)
def test_linear_of_a_batch(benchmark, vit, product, device, backend):
    run_product(benchmark, vit, product, (device, backend))


@pytest.mark.parametrize(("device", "backend"), TARGETS)
@pytest.mark.parametrize("sizes", [(32, 256), (96, 256), (256, 32), (256, 96)], ids="{0[0]} to {0[1]}".format)
def test_narrow_linear(benchmark, sizes, device, backend):
    """What a few live heads need: a head's 32 columns into the stream, or the inputs of one."""
    benchmark.group = "linear 65 rows, {} to {}".format(*sizes)
    run(benchmark, (1, 65, *sizes), "none", (device, backend))


def run_product(benchmark, vit: str, product: str, target: tuple[str, str]) -> None:
    benchmark.group = f"linear {vit} {product}"
    images, tokens, width, _ = (VITS | LARGE | BATCHES)[vit]
    inputs, outputs, activation = PRODUCTS[product]
    run(benchmark, (images, tokens, inputs * width, outputs * width), activation, target)


def run(benchmark, sizes: tuple[int, int, int, int], activation: str, target: tuple[str, str]) -> None:
    device, backend = target
    images, tokens, inputs, outputs = sizes
    shapes = (images, tokens, inputs), (outputs, inputs), (outputs,)
    x, weight, bias = (torch.randn(shape, **like(device)) for shape in shapes)
    if backend == "cpu":
        packed = pack_linear(weight)
        measure(benchmark, lambda: linear_packed(x, packed, outputs, bias, activation), 2.0 * x.numel() * outputs)
    else:
        measure(benchmark, lambda: linear(x, weight, bias, activation, backend), 2.0 * x.numel() * outputs, device)
