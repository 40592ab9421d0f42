"""Sections ``latency`` and ``large``: all candidates of a model and batch taking turns, and the ratios among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.model.candidates import Candidates, Runner, threads_of
from benchmarks.model.targets import BATCHES, MODEL, ROWS, Row, compare
from vitsparse.evaluation.latency import PAUSE, Latency, measure_rounds

LARGE = ("vit_small_patch16_224", "vit_base_patch16_224")
LARGE_NAMES = ("D openvino", "C half", "full", "half", "mixed")
LARGE_ROWS = tuple(replace(row, bounds={}) for row in ROWS
                   if row.name in ("full vs D", "half vs D", "mixed vs D", "half vs C", "mixed vs half"))
ROUNDS = {1: 120, 32: 25}
QUICK_MODEL = "vit_digits_p2_d64_l6_h4"
"""Where it only matters that everything runs; no bounds hold for it."""


def latency(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """The table of the 12-layer model, batch 1 and 32."""
    for batch in BATCHES:
        candidates = Candidates(QUICK_MODEL if quick else MODEL, batch)
        rows = tuple(replace(row, bounds={}) for row in ROWS) if quick else ROWS
        yield from measured(candidates, list(candidates.names()), rows, 3 if quick else ROUNDS[batch])


def large(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """ViT-S/16 and ViT-B/16 at 224 pixels, batch 1; reported without bounds."""
    for model in (QUICK_MODEL,) if quick else LARGE:
        yield from measured(Candidates(model, 1), list(LARGE_NAMES), LARGE_ROWS, 3 if quick else 30)


def measured(candidates: Candidates, names: list[str], rows: tuple[Row, ...], rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each candidate (``kind`` time, milliseconds), then one for each comparison."""
    runners = candidates.make_all(names)
    with torch.inference_mode():
        times = measure_rounds(runners, warmup=3, repeats=rounds, min_seconds=0, pause=PAUSE)
    about = {"model": candidates.model_name, "dtype": "float32", "threads": torch.get_num_threads()}
    yield from ({**about, **row} for row in times_of(candidates, runners, times))
    yield from ({**about, **row} for row in compare(rows, candidates.batch, times))


def times_of(candidates: Candidates, runners: Mapping[str, Runner],
             times: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """What each candidate took, the threads it had and its share of the dense FLOPs where that is known."""
    for name, runner in runners.items():
        quantiles = Latency.of(times[name])
        yield {"kind": "time", "name": name, "batch": candidates.batch, "p20": round(quantiles.p20, 4),
               "ms": round(quantiles.p50, 4), "p80": round(quantiles.p80, 4), "n": quantiles.n,
               "threads": threads_of(runner), "flops_share": round_or_none(candidates.flops.get(name))}


def round_or_none(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
