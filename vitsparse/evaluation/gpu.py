"""Timing on a GPU: callables recorded as CUDA graphs, a clock of events behind a flushed cache, facts of the card."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FLUSH_BYTES = 256 * 2**20
"""Written between samples, at least: several times any L2 (H200: 60 MB), and long enough (H200: 60 us) for the CPU to
hand over a whole graph meanwhile, so that what is timed behind it never waits for its launch."""
QUERIES = {"driver": "driver_version", "clock_mhz": "clocks.sm", "memory_clock_mhz": "clocks.mem",
           "max_clock_mhz": "clocks.max.sm", "power_limit_w": "power.limit", "temperature_c": "temperature.gpu"}


class Captured:
    """``function(*inputs)`` recorded once as a CUDA graph; a call replays it and gives ``output``.

    ``inputs`` are copies that stay where they are: write into them to compute something else; ``output`` is overwritten
    by every call. The function is called a few times before, where kernels are compiled and chosen.
    """

    def __init__(self, function: Callable[..., Any], *inputs: Tensor, warmup: int = 3):
        self.function = function  # whose weights the graph reads
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # as in the recording, so that libraries make their workspaces beforehand
            for _ in range(warmup):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = function(*self.inputs)

    def __call__(self) -> Any:
        self.graph.replay()
        return self.output


captured = Captured
"""``captured(function, *inputs)``: a runner without arguments."""


@dataclass(frozen=True)
class CudaClock:
    """Milliseconds of a call, between two events on the current stream around ``calls`` calls.

    ``cold``: the L2 cache is flushed before; then ``calls`` should be 1, because the first call warms it for the next.
    """

    cold: bool = True
    calls: int = 1

    def __call__(self, function: Callable[[], Any]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        if self.cold:
            flush_l2()
        start.record()
        for _ in range(self.calls):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / self.calls


def flush_l2() -> None:
    """Write over the L2 cache of the current device, on the current stream."""
    _scratch(torch.cuda.current_device()).zero_()


@functools.cache
def _scratch(device: int) -> Tensor:
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    with torch.inference_mode(False):
        return torch.empty(max(FLUSH_BYTES, 4 * l2), dtype=torch.uint8, device=f"cuda:{device}")


def gpu_facts() -> dict[str, Any]:
    """The current device as plain JSON values, with driver, clocks, power limit and temperature at this moment.

    What cannot be read is None. Read right behind a measurement: an idle card lowers its clocks within a second.
    """
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {**_asked(f"GPU-{properties.uuid}"), "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}", "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size, "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda}


def _asked(device: str) -> dict[str, Any]:
    """What ``nvidia-smi`` says of a device; None for each where it is missing or silent."""
    try:
        done = subprocess.run(["nvidia-smi", f"--id={device}", f"--query-gpu={','.join(QUERIES.values())}",
                               "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20, check=True)
        answers = [text.strip() for text in done.stdout.strip().split(",")]
    except (OSError, subprocess.SubprocessError):
        answers = []
    if len(answers) != len(QUERIES):
        answers = ["[N/A]"] * len(QUERIES)
    return {name: _plain(text) for name, text in zip(QUERIES, answers, strict=True)}


def _plain(text: str) -> str | float | None:
    """A number where it is one (a driver's version has two dots or more), None for what is not available."""
    if text.startswith("["):
        return None
    try:
        return float(text)
    except ValueError:
        return text
