"""The candidates of ``python -m benchmarks.model --device cuda`` under pytest-benchmark (`make bench`), each alone.

A row is one replay of a captured graph behind a flushed cache, by the GPU's own clock. Rows of one group (batch)
compare roughly; the table takes turns.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
import torch

from benchmarks.model.cuda_candidates import BOUND, NEEDED, CudaCandidates
from benchmarks.model.on_cuda import BACKENDS, BATCHES, ROUNDS
from benchmarks.model.targets import MODEL
from benchmarks.ops.cuda import CudaTimer, reasons_against
from vitsparse import InputError
from vitsparse.evaluation.gpu import flush_l2, gpu_facts
from vitsparse.evaluation.latency import Latency, machine_facts

pytestmark = pytest.mark.benchmark(timer=CudaTimer())
NAMES = (*NEEDED, *(f"{name}, {backend}" for backend in BACKENDS for name in BOUND))
candidates = functools.cache(functools.partial(CudaCandidates, MODEL))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", BATCHES)
def test_candidate(benchmark, batch, name):
    backend = name.partition(", ")[2] or "torch"
    if reasons := reasons_against("cuda", backend):
        pytest.skip("; ".join(reasons))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's compiler
        try:
            run = candidates(batch).make(name)
        except InputError as error:
            pytest.skip(str(error))
        checked = candidates(batch).check(name, run())
        assert checked["met"], checked
        benchmark.group = f"{MODEL}, GPU, batch {batch}"
        benchmark.pedantic(run, setup=flush_l2, rounds=ROUNDS, warmup_rounds=5)
    cold = Latency.of(np.array(benchmark.stats.stats.data) * 1e3)
    benchmark.extra_info.update(machine_facts() | gpu_facts(), batch=batch, dtype="float16", what=name, p20=cold.p20,
                                p50=cold.p50, p80=cold.p80, error=checked["error"],
                                flops_share=candidates(batch).flops.get(name), how=candidates(batch).how.get(name))
