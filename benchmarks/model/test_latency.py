"""Latency of dense and sparse ViTs (`make bench`, or pytest as the Makefile calls it on this folder alone).

Rows of one group (model, batch) compare with each other: each has its quartiles over the same run, with machine,
commit and share of the FLOPs in ``extra_info``. On a machine with a GPU the models run there.
"""

from __future__ import annotations

import functools
import warnings

import pytest
import torch

from benchmarks.model.circuits import named_circuits
from vitsparse import Ablation, InputError, SparseViT, create_model, sparsify
from vitsparse.compiler import dense_flops
from vitsparse.evaluation.baselines import BASELINES
from vitsparse.evaluation.latency import machine_facts
from vitsparse.model.vit import ViT

MODELS = {"p8 d128 l6 h4": "vit_tiny_imagenet_p8_d128_l6_h4", "p8 d256 l12 h8": "vit_tiny_imagenet_p8_d256_l12_h8"}
CIRCUITS = ("full", "half", "third", "lean", "mixed", "edges50", "found")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def dense_model(name: str) -> ViT:
    return create_model(MODELS[name], num_classes=200).eval().to(DEVICE)


def sparse_model(model: ViT, circuit_name: str) -> SparseViT:
    circuit = named_circuits(model.depth, model.num_heads)[circuit_name]
    return sparsify(model, circuit, ablation=Ablation.zero(model, circuit.graph)).eval()


@pytest.mark.parametrize("what", [*BASELINES, *CIRCUITS])
@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("name", MODELS)
def test_latency(benchmark, name, batch, what):
    benchmark.group = f"{name}, batch {batch}"
    model, images = dense_model(name), torch.randn(batch, 3, 64, 64, device=DEVICE)
    benchmark.extra_info.update(machine_facts(), batch=batch, dtype="float32", what=what)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if what in BASELINES:
            try:
                run = BASELINES[what](model, images)
            except InputError as error:
                pytest.skip(str(error))
        else:
            if what not in named_circuits(model.depth, model.num_heads):
                pytest.skip("the circuit is of a model of another shape")
            sparse = sparse_model(model, what)
            benchmark.extra_info["flops_share"] = sparse.plan.flops / dense_flops(model.config)
            run = functools.partial(sparse, images)

        def timed() -> None:
            run()
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        benchmark.pedantic(timed, rounds=30, warmup_rounds=5)
