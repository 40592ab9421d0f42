"""Sections ``latency`` and ``large`` on a GPU: candidates checked, then timed in turns, cold and warm; then the ratios.

What counts is the time between two events on the device around one replay, behind a flushed L2 cache (``ms``); beside
it the same without a flush, over twenty replays (``warm_ms``).
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.model.candidates import Runner
from benchmarks.model.cuda_candidates import CudaCandidates
from benchmarks.model.latency import LARGE, QUICK_MODEL
from benchmarks.model.targets import MODEL, ROWS, Row, compare
from vitsparse import InputError
from vitsparse.evaluation.gpu import CudaClock
from vitsparse.evaluation.latency import Latency, measure_rounds
from vitsparse.ops.backend import why_not

BATCHES = (1, 128)
BACKENDS = ("cuda", "triton")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
COLD, WARM = CudaClock(), CudaClock(cold=False, calls=20)
ROUNDS, WARM_ROUNDS = 100, 5
SMALL = ("half", "lean", "found")
H200_MS = 0.10
"""Milliseconds that an H200 may take for one image on a circuit of :data:`SMALL`."""


@dataclass(frozen=True)
class Settings:
    """``seconds``: of making candidates, over all batches; those that a target needs are made however long it takes."""

    dtype: str = "float16"
    batches: tuple[int, ...] = BATCHES
    seconds: float = 240.0
    backends: tuple[str, ...] = BACKENDS

    def check(self) -> None:
        """Raise :class:`InputError` where there is no GPU, or none of this dtype."""
        if not torch.cuda.is_available():
            raise InputError("there is no GPU to measure", where="--device cuda", found="torch finds no CUDA device",
                             remedy="vitsparse doctor says what is missing")
        if self.dtype == "bfloat16" and torch.cuda.get_device_capability() < (8, 0):
            raise InputError("this GPU has no bfloat16", where="--dtype", expected="float16", found=self.dtype)
        for backend in self.backends:
            if reasons := why_not(backend, "cuda"):
                print(f"backend {backend}: not measured, {'; '.join(reasons)}")


def latency(settings: Settings, *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """The table of the 12-layer model. GeForce cards add up float16 at twice the rate in float16: they run twice."""
    variants = [(sums, batch) for sums in sums_of(settings.dtype) for batch in settings.batches]
    for sums, batch in variants:
        candidates = CudaCandidates(QUICK_MODEL if quick else MODEL, batch, dtype=DTYPES[settings.dtype],
                                    backends=settings.backends)
        yield from measured(candidates, sums, settings.seconds / len(variants), 3 if quick else ROUNDS)


def large(settings: Settings, *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """ViT-S/16 and ViT-B/16 at 224 pixels, batch 1; reported without bounds."""
    for model in (QUICK_MODEL,) if quick else LARGE:
        candidates = CudaCandidates(model, 1, dtype=DTYPES[settings.dtype], backends=settings.backends)
        yield from measured(candidates, "float32", 0.0, 3 if quick else ROUNDS)


def measured(candidates: CudaCandidates, sums: str, seconds: float, rounds: int) -> Iterator[dict[str, Any]]:
    """The error of each candidate, the time of each that is right, and the comparisons among these."""
    about = {"model": candidates.model_name, "dtype": str(candidates.dtype).removeprefix("torch."), "sums": sums}
    with torch.no_grad(), warnings.catch_warnings(), adding_up_in(sums):
        warnings.simplefilter("ignore")
        runners = candidates.make_until(time.monotonic() + seconds)
        right = {}
        for name, runner in runners.items():
            row = candidates.check(name, runner())
            yield {**about, **row}
            if row["met"]:
                right[name] = runner
        if not right:
            return
        cold = measure_rounds(right, warmup=3, repeats=rounds, min_seconds=0, clock=COLD)
        warm = measure_rounds(right, warmup=1, repeats=WARM_ROUNDS, min_seconds=0, clock=WARM)
    yield from ({**about, **row} for row in times_of(candidates, right, cold, warm))
    table = candidates.model_name == MODEL
    for backend in candidates.backends:
        rows = rows_of(candidates, backend, table)
        yield from ({**about, "backend": backend, **row} for row in compare(rows, candidates.batch, cold))


def times_of(candidates: CudaCandidates, runners: Mapping[str, Runner], cold: Mapping[str, np.ndarray],
             warm: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """What each candidate took; one image of a small circuit of the table has a bound of its own on an H200."""
    fast = candidates.model_name == MODEL and candidates.batch == 1 and "H200" in gpu_name()
    for name in runners:
        quantiles, share = Latency.of(cold[name]), candidates.flops.get(name)
        bound = H200_MS if fast and name.split(", ")[0] in SMALL and name.count(", ") == 1 else None
        yield {"kind": "time", "name": name, "batch": candidates.batch, "p20": round(quantiles.p20, 5),
               "ms": round(quantiles.p50, 5), "p80": round(quantiles.p80, 5), "n": quantiles.n,
               "warm_ms": round(float(np.median(warm[name])), 5), "flops_share": share and round(share, 4),
               "how": candidates.how.get(name),
               **({"target": bound, "met": quantiles.p50 <= bound} if bound is not None else {})}


def rows_of(candidates: CudaCandidates, backend: str, table: bool) -> tuple[Row, ...]:
    """The comparisons of one of our backends; with ``table`` they have the bounds of a GPU."""
    rows = []
    for row in ROWS:
        ours = f"{row.ours}, {backend}"
        bounds = gpu_bounds(row, candidates.flops.get(ours)) if table else {}
        theirs = f"{row.theirs}, {backend}" if row.price else row.theirs
        rows.append(replace(row, ours=ours, theirs=theirs, bounds=bounds))
    return tuple(rows)


def gpu_bounds(row: Row, share: float | None) -> dict[int, tuple[float | None, float | None]]:
    """Target and aim by batch; in large batches what a circuit must gain follows its ``share`` of the dense FLOPs."""
    if row.theirs == "D" and row.ours in SMALL and share:
        return {1: (2.5, None), 128: (round(0.9 / share, 3), round(1.5 / share, 3))}
    return {"half vs C": {1: (1.0, 1.3), 128: (0.95, 1.3)}, "mixed vs half": {1: (1.2, 1.1), 128: (1.2, 1.1)},
            "edges50 vs E": {1: (2.5, None), 128: (1.5, None)},
            "full vs D": {1: (1.0, None), 128: (1.0, None)}}.get(row.name, {})


def gpu_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def sums_of(dtype: str) -> tuple[str, ...]:
    """In which dtypes products may add up: consumer cards halve the rate of float32 sums."""
    return ("float32", "float16") if dtype == "float16" and "GeForce" in gpu_name() else ("float32",)


@contextlib.contextmanager
def adding_up_in(sums: str) -> Iterator[None]:
    """Let every candidate, ours and theirs, add up float16 products in ``sums`` meanwhile."""
    flags = torch.backends.cuda.matmul
    before = flags.allow_fp16_accumulation
    flags.allow_fp16_accumulation = sums == "float16"
    try:
        yield
    finally:
        flags.allow_fp16_accumulation = before
