"""Latency of several candidates in one run, and the facts about the machine that a number is worthless without."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from .gpu import CudaClock

PAUSE = 0.01
"""Seconds before each call on a CPU. OpenMP's threads spin for up to 10 ms after one, and whoever comes next on other
threads, as OpenVINO does, has to do without that core: 2.2 ms where it takes 1.6 alone."""


@dataclass(frozen=True)
class Latency:
    """Quantiles of the duration of one call in milliseconds, over ``n`` calls."""

    p20: float
    p50: float
    p80: float
    n: int

    @classmethod
    def of(cls, times: np.ndarray) -> Latency:
        """The quantiles of ``times`` [n]."""
        return cls(*(float(q) for q in np.quantile(times, (0.2, 0.5, 0.8))), n=len(times))


def measure(functions: Mapping[str, Callable[[], Any]], *, warmup: int = 5, repeats: int = 50, min_seconds: float = 0.5,
            pause: float | None = None, device: torch.device | str = "cpu") -> dict[str, Latency]:
    """Quantiles of the duration of one call of each function; see :func:`measure_rounds`.

    ``pause``: if not given, :data:`PAUSE` on a CPU, so that candidates come to rest between calls, and 0 elsewhere.
    """
    if pause is None:
        pause = PAUSE if torch.device(device).type == "cpu" else 0.0
    rounds = measure_rounds(functions, warmup=warmup, repeats=repeats, min_seconds=min_seconds, pause=pause,
                            device=device)
    return {name: Latency.of(times) for name, times in rounds.items()}


def measure_rounds(functions: Mapping[str, Callable[[], Any]], *, warmup: int = 5, repeats: int = 50,
                   min_seconds: float = 0.5, pause: float = 0.0, device: torch.device | str = "cpu",
                   clock: Callable[[Callable[[], Any]], float] | None = None) -> dict[str, np.ndarray]:
    """Milliseconds of one call of each function in each round: [rounds] by name.

    The functions take turns, so that whatever else the machine does hits all alike, and entries of one round compare.
    Each round calls every candidate once, starting one further along each time, so that no candidate always runs in
    the cache another one left. Rounds go on until each has ``repeats`` calls and ``min_seconds`` have passed per
    candidate. On CUDA the time between two events on the current stream counts, launches included; ``clock`` is another
    way to take the milliseconds of a call (:class:`~.gpu.CudaClock` flushes the cache before). ``pause`` are the
    seconds before each call that :func:`settle` takes; they do not count.
    """
    if not functions or min(warmup, repeats - 1, min_seconds, pause) < 0:
        raise InputError("nothing to measure", where="measure", expected="a function, warmup >= 0, repeats >= 1",
                         found=f"{len(functions)} functions, warmup={warmup}, repeats={repeats}")
    time_call = clock or (CudaClock(cold=False) if torch.device(device).type == "cuda" else _cpu_milliseconds)
    for function in functions.values():
        for _ in range(warmup):
            time_call(function)
    names = list(functions)
    samples: dict[str, list[float]] = {name: [] for name in names}
    end, rounds = time.perf_counter() + min_seconds * len(names), 0
    while rounds < repeats or time.perf_counter() < end:
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            settle(functions[name], pause, (samples[name] or [0.0])[-1])
            samples[name].append(time_call(functions[name]))
        rounds += 1
    return {name: np.array(times) for name, times in samples.items()}


def settle(function: Callable[[], Any], seconds: float, milliseconds: float) -> None:
    """Let threads that spin after somebody else's call come to rest before ``function`` is timed.

    OpenMP's threads burn several milliseconds of a core after a call, which whoever comes next on other threads has to
    do without. Where a call takes less than ``seconds`` (``milliseconds``: what one took), they are filled with calls,
    so that it is timed as warm as if it ran alone; else with sleep.
    """
    end = time.perf_counter() + seconds
    if milliseconds / 1e3 > seconds:
        time.sleep(seconds)
    while time.perf_counter() < end:
        function()


def machine_facts() -> dict[str, Any]:
    """CPU, GPU, threads, versions, commit and date, as plain JSON values."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "gpu": gpu, "cuda": torch.version.cuda if gpu else None,
        "platform": platform.platform(), "python": platform.python_version(), "torch": torch.__version__,
        "vitsparse": _version(), "commit": git_commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, ``+dirty`` if files changed since; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _version() -> str | None:
    try:
        return importlib.metadata.version("vitsparse")
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _cpu_milliseconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter_ns()
    function()
    return (time.perf_counter_ns() - start) / 1e6
