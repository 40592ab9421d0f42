"""Latency of dense and sparse ViTs: python -m pytest benchmarks/model --benchmark-json=rows.json

Rows of one group (model, batch) compare with each other: each is p50 and quartiles over the same run, with machine,
commit, FLOPs and backend in ``extra_info``. On a machine with a GPU the models run there.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import pytest
import torch

from benchmarks.model.circuits import named_circuits
from vitsparse import Ablation, create_model, sparsify
from vitsparse.compiler import dense_flops
from vitsparse.evaluation.latency import machine_facts
from vitsparse.model.vit import ViT

MODELS = {"p8 d128 l6 h4": "vit_tiny_imagenet_p8_d128_l6_h4", "p8 d256 l12 h8": "vit_tiny_imagenet_p8_d256_l12_h8"}
CIRCUITS = ("full", "half", "third", "lean", "mixed", "edges50")
DENSE = ("dense eager", "dense compile", "dense openvino")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def dense_model(name: str) -> ViT:
    return create_model(MODELS[name], num_classes=200).eval().to(DEVICE)


def runner(model: ViT, what: str, images: torch.Tensor, extra: dict) -> Callable[[], object]:
    """The callable that row ``what`` times."""
    if what == "dense eager":
        return functools.partial(model, images)
    if what == "dense compile":
        return functools.partial(torch.compile(model, dynamic=False), images)
    if what == "dense openvino":
        return openvino_runner(model, images)
    circuit = named_circuits(model.depth, model.num_heads)[what]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparse = sparsify(model, circuit, ablation=Ablation.zero(model, circuit.graph)).eval()
    extra["flops_share"] = sparse.plan.flops / dense_flops(model.config)
    return functools.partial(sparse, images)


def openvino_runner(model: ViT, images: torch.Tensor) -> Callable[[], object]:
    """The dense model under OpenVINO with static shapes and the latency hint, in float32."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if DEVICE != "cpu":
        pytest.skip("OpenVINO is the baseline of CPUs")
    converted = openvino.convert_model(model, example_input=images, input=list(images.shape))
    compiled = openvino.compile_model(converted, "CPU", {"PERFORMANCE_HINT": "LATENCY",
                                                         "INFERENCE_PRECISION_HINT": "f32"})
    return functools.partial(compiled, images.numpy())


@pytest.mark.parametrize("what", [*DENSE, *CIRCUITS])
@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("name", MODELS)
def test_latency(benchmark, name, batch, what):
    benchmark.group = f"{name}, batch {batch}"
    model = dense_model(name)
    images = torch.randn(batch, 3, 64, 64, device=DEVICE)
    benchmark.extra_info.update(machine_facts(), batch=batch, dtype="float32", what=what)
    with torch.inference_mode():
        run = runner(model, what, images, benchmark.extra_info)
        run()

        def timed() -> None:
            run()
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        benchmark.pedantic(timed, rounds=30, warmup_rounds=5)
