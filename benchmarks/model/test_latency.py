"""The candidates and rows of `python -m benchmarks.model` under pytest-benchmark (`make bench`).

``test_candidate`` times each alone: rows of one group (model, batch) compare roughly. ``test_row`` times ours and what
it is compared with in turn, as the table does; ratio, target and whether it is met are in ``extra_info``.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from benchmarks.model.candidates import DENSE, REMOVED, UNDER_MEAN, Candidates, threads_of
from benchmarks.model.circuits import named_circuits
from benchmarks.model.targets import BATCHES, MODEL, ROWS, compare
from vitsparse import InputError
from vitsparse.evaluation.latency import PAUSE, machine_facts, measure_rounds, settle

NAMES = (*DENSE, *(f"C {name}" for name in REMOVED), "E eager", "E compile", *named_circuits(12, 8),
         *(f"{name}, mean" for name in UNDER_MEAN))
candidates = functools.cache(functools.partial(Candidates, MODEL))


@functools.cache
def runner(batch: int, name: str):
    return candidates(batch).make(name)


def runner_or_skip(batch: int, name: str):
    try:
        return runner(batch, name)
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", BATCHES)
def test_candidate(benchmark, batch, name):
    run = runner_or_skip(batch, name)
    benchmark.group = f"{MODEL}, batch {batch}"
    benchmark.extra_info.update(machine_facts(), batch=batch, dtype="float32", what=name)
    benchmark.extra_info.update(threads=threads_of(run), flops_share=candidates(batch).flops.get(name))
    with torch.inference_mode():
        benchmark.pedantic(run, rounds=20, warmup_rounds=3)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("batch", BATCHES)
def test_row(benchmark, batch, row):
    """Before each call of ours, one call of each rival is timed, each after a pause as in the table."""
    ours = runner_or_skip(batch, row.ours)
    rivals = {name: runner_or_skip(batch, name) for name in row.rivals(dict.fromkeys(NAMES))}
    before: list[dict[str, np.ndarray]] = []

    def time_rivals() -> None:
        before.append(measure_rounds(rivals, warmup=0, repeats=1, min_seconds=0, pause=PAUSE))
        settle(ours, PAUSE, 0.0)

    benchmark.group = f"rows, batch {batch}"
    with torch.inference_mode():
        benchmark.pedantic(ours, setup=time_rivals, rounds=20, warmup_rounds=3)
    mine = np.array(benchmark.stats.stats.data) * 1e3
    times = {name: np.concatenate([taken[name] for taken in before[-len(mine):]]) for name in rivals}
    (found,) = compare((row,), batch, {**times, row.ours: mine})
    benchmark.extra_info.update(machine_facts(), dtype="float32", **found)
