"""Shapes that the op benchmarks share, and how a row is measured.

Run `python -m pytest -o addopts=--import-mode=importlib benchmarks/ops --benchmark-only`; add `--benchmark-json FILE`
for the numbers with machine and versions. One thread: there the ratio to the baseline is the kernel's own doing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks.ops.cuda import measure_cuda

# images, tokens, width, heads: a tiny ViT (32 x 32 digits), the small preset, and the 12-layer model of Tiny ImageNet
VITS = {"17x64": (1, 17, 64, 4), "17x96": (1, 17, 96, 4), "65x128": (1, 65, 128, 4), "65x256": (1, 65, 256, 8),
        "16 x 65x256": (16, 65, 256, 8)}
LARGE = {"ViT-S/16": (1, 197, 384, 6), "ViT-B/16": (1, 197, 768, 12)}  # images of 224 pixels


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(benchmark, run: Callable[[], object], flops: float, device: str = "cpu") -> None:
    """Time ``run`` without autograd, and put GFLOP/s of the median beside the times: on the CPU on one thread, on a
    GPU as in :mod:`benchmarks.ops.cuda`."""
    if device == "cuda":
        measure_cuda(benchmark, run, flops)
        return
    with one_thread(), torch.inference_mode():
        benchmark(run)
    benchmark.extra_info["gflops"] = round(flops / benchmark.stats.stats.median / 1e9, 1)
