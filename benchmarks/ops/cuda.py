"""How an op is timed on a GPU, and where op benchmarks run.

A round is one call, recorded as a CUDA graph and replayed between two events behind a flushed L2 cache: what a call
costs inside a captured model whose weights come from memory. Beside it, in ``extra_info``: microseconds warm, and those
between two events around nothing, which every round includes.

    @pytest.mark.parametrize(("device", "backend"), TARGETS)
    def test_x(benchmark, device, backend):
        x = torch.randn(..., **like(device))
        measure(benchmark, lambda: op(x, backend), flops, device)
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vitsparse.evaluation.gpu import CudaClock, captured, flush_l2
from vitsparse.evaluation.latency import Latency
from vitsparse.ops.backend import why_not

CPU_TARGETS = [pytest.param("cpu", backend, id=backend) for backend in ("cpu", "torch")]
CUDA_TARGETS = [pytest.param("cuda", backend, id=f"cuda-{backend}") for backend in ("cuda", "triton", "torch")]
TARGETS = [*CPU_TARGETS, *CUDA_TARGETS]
"""(device, backend) of every row; those of a GPU are skipped, with the reasons, where they cannot run."""
ROUNDS = 100


class CudaTimer:
    """pytest-benchmark's timer in seconds of the device: every other call ends what the call before it began."""

    def __init__(self) -> None:
        self.seconds, self.start = 0.0, None

    def __call__(self) -> float:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        if self.start is None:
            self.start = event
        else:
            event.synchronize()
            self.seconds, self.start = self.seconds + self.start.elapsed_time(event) / 1e3, None
        return self.seconds


def like(device: str) -> dict[str, Any]:
    """Device and dtype of a benchmark's tensors: float32 on the CPU, float16 on a GPU."""
    return {"device": device, "dtype": torch.float16 if device == "cuda" else torch.float32}


def reasons_against(device: str, backend: str) -> list[str]:
    """Why a row cannot be measured here; empty when it can."""
    if device == "cuda" and not torch.cuda.is_available():
        return ["torch finds no CUDA device"]
    return why_not(backend, device)


def measure_cuda(benchmark, run: Callable[[], object], flops: float) -> None:
    """Time ``run`` as the module's head says. The benchmark's timer must be a :class:`CudaTimer` (conftest.py)."""
    with torch.inference_mode():
        replay = captured(run)
        benchmark.pedantic(replay, setup=flush_l2, rounds=ROUNDS, warmup_rounds=5)
        warm = statistics.median(CudaClock(cold=False, calls=50)(replay) for _ in range(5))
        empty = statistics.median(CudaClock()(lambda: None) for _ in range(20))
    cold = Latency.of(np.array(benchmark.stats.stats.data) * 1e6)
    benchmark.extra_info.update(p20_us=round(cold.p20, 2), p50_us=round(cold.p50, 2), p80_us=round(cold.p80, 2),
                                warm_us=round(warm * 1e3, 2), empty_us=round(empty * 1e3, 2),
                                gflops=round(flops / cold.p50 / 1e3, 1))
