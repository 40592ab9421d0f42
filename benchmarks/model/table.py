"""All candidates of a model and batch taking turns in one process: python -m benchmarks.model.table rows.csv

pytest-benchmark times one candidate after the other, so a neighbour on the machine that comes and goes can change their
order. Here it hits all alike; the ratios to quote are these.
"""

from __future__ import annotations

import csv
import functools
import sys
import warnings

import torch

from benchmarks.model.circuits import named_circuits
from benchmarks.model.test_latency import DEVICE, MODELS, dense_model, sparse_model
from vitsparse import InputError
from vitsparse.circuit.files import atomic_path
from vitsparse.compiler import dense_flops
from vitsparse.evaluation.baselines import BASELINES
from vitsparse.evaluation.latency import machine_facts, measure

FACTS = ("cpu", "cores", "threads", "gpu", "torch", "vitsparse", "commit", "date")


@torch.inference_mode()
def rows_of(name: str, batch: int) -> list[dict[str, object]]:
    """One row a candidate: quantiles in ms, share of the dense FLOPs, and the machine."""
    model, images = dense_model(name), torch.randn(batch, 3, 64, 64, device=DEVICE)
    runs, shares = {}, {}
    for baseline, make in BASELINES.items():
        try:
            runs[baseline] = make(model, images)
        except InputError as error:
            print(f"{baseline}: left out, {error.what}", file=sys.stderr)
    for circuit in named_circuits(model.depth, model.num_heads):
        sparse = sparse_model(model, circuit)
        runs[circuit] = functools.partial(sparse, images)
        shares[circuit] = round(sparse.plan.flops / dense_flops(model.config), 4)
    facts = machine_facts()
    return [{"model": name, "batch": batch, "what": what, "p20_ms": round(latency.p20, 4),
             "p50_ms": round(latency.p50, 4), "p80_ms": round(latency.p80, 4), "n": latency.n,
             "flops_share": shares.get(what, 1.0), "dtype": "float32", **{fact: facts[fact] for fact in FACTS}}
            for what, latency in measure(runs, repeats=30, min_seconds=0.5, device=DEVICE).items()]


def main(path: str) -> None:
    """Measure every model and batch and write the rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [row for name in MODELS for batch in (1, 32) for row in rows_of(name, batch)]
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"{row['model']:16} batch {row['batch']:2}  {row['what']:10} {row['p50_ms']:9.3f} ms "
              f"[{row['p20_ms']:.3f}, {row['p80_ms']:.3f}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
