"""Latency of a cell's model beside the dense one under the strongest runtimes, taking turns, and of the seed's loop."""

from __future__ import annotations

import copy
import functools
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitsparse import InputError, SparseViT, ViT
from vitsparse.data import Batches
from vitsparse.evaluation.baselines import BASELINES, CUDA_BASELINES
from vitsparse.evaluation.evaluate import device_of
from vitsparse.evaluation.intervals import right_answers
from vitsparse.evaluation.latency import Latency, measure_rounds

# On CPUs torch.compile takes longer than OpenVINO on every machine seen (benchmarks/results), and as long to compile as
# everything else here together.
CPU_RUNTIMES, GPU_RUNTIMES = ("eager", "openvino"), ("eager", "compile", "tensorrt")
LOOPS = 5  # of the whole evaluation


def latency(model: ViT | SparseViT, dense: ViT, batches: Batches, sizes: tuple[int, ...],
            seconds: float) -> dict[str, Any]:
    """{"batches": {size: ...}, "loop": ...}: see the two functions below; on GPUs all candidates compute in float16.

    ``accuracy`` is that of the very model that is timed; ``seconds`` is how long each candidate is.
    """
    model, dense = model.eval(), dense.eval()
    if device_of(model).type == "cuda":
        model, dense = copy.deepcopy(model).half(), copy.deepcopy(dense).half()
        batches = _Halved(batches)
    with torch.inference_mode():
        return {"dtype": str(next(dense.parameters()).dtype).removeprefix("torch."),
                "batches": {str(size): _at(model, dense, _first(batches, size), seconds) for size in sizes},
                "loop": loop(model, batches), "accuracy": float(right_answers(model, batches).mean())}


def _at(model: ViT | SparseViT, dense: ViT, images: Tensor, seconds: float) -> dict[str, Any]:
    """Milliseconds of a call of the model and of the dense one under each runtime that is here, and the ratio of the
    strongest of those to the model, round by round."""
    candidates, notes = {}, []
    gpu = images.device.type == "cuda"
    runtimes: Mapping[str, Callable[[nn.Module, Tensor], Callable[[], object]]] = CUDA_BASELINES if gpu else BASELINES
    for name in GPU_RUNTIMES if gpu else CPU_RUNTIMES:
        try:
            candidates[name] = runtimes[name](dense, images)
        except InputError as error:
            notes.append(f"{name}: left out, {error.what}")
    backend, ours = _runner(model, images, runtimes)
    rounds = measure_rounds({**candidates, "model": ours}, repeats=30, min_seconds=seconds, device=images.device)
    strongest = min(candidates, key=lambda name: float(np.median(rounds[name])))
    ratio = Latency.of(rounds[strongest] / rounds["model"])
    return {"model": {"backend": backend, **asdict(Latency.of(rounds["model"]))},
            "dense": {name: asdict(Latency.of(rounds[name])) for name in candidates}, "strongest": strongest,
            "speedup": {"p20": ratio.p20, "p50": ratio.p50, "p80": ratio.p80}, "notes": notes}


def _runner(model: ViT | SparseViT, images: Tensor, runtimes: Mapping[str, Any]) -> tuple[str, Callable[[], object]]:
    """How a model is run at its fastest: a sparse one by its backend, a dense one (of any shape) by OpenVINO or, on a
    GPU, as a graph of the compiled model."""
    if isinstance(model, SparseViT):
        if images.device.type == "cuda":
            captured = model.capture(images)
            return f"{model.chosen_backend}, {captured.how}", captured.replay
        return model.chosen_backend, functools.partial(model, images)
    for name in ("compile",) if images.device.type == "cuda" else ("openvino",):
        try:
            return name, runtimes[name](model, images)
        except InputError:
            continue
    return "eager", runtimes["eager"](model, images)


def loop(model: ViT | SparseViT, batches: Batches) -> dict[str, Any]:
    """Seconds of a whole evaluation as the seed measured it, the images' way to the model and the loss included, and
    of the model alone in it. The dense model runs in eager PyTorch, as it did there."""
    whole, alone = [], []
    for _ in range(LOOPS):
        start, inside = time.perf_counter(), 0.0
        for images, labels in batches:
            before = _now(images)
            logits = model(images)
            inside += _now(images) - before
            nn.functional.cross_entropy(logits.float(), labels).item()
        whole.append(time.perf_counter() - start)
        alone.append(inside)
    quantiles = {name: dict(zip(("p20", "p50", "p80"), np.quantile(times, (0.2, 0.5, 0.8)).tolist(), strict=True))
                 for name, times in (("loop_s", whole), ("model_s", alone))}
    runner = model.chosen_backend if isinstance(model, SparseViT) else "eager"
    return {"batch": batches.batch_size, "images": batches.num_images, "runner": runner, **quantiles}


def _now(images: Tensor) -> float:
    if images.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _first(batches: Batches, count: int) -> Tensor:
    """The first ``count`` images, over again where there are fewer."""
    images = torch.cat([images for images, _ in itertools.islice(batches, -(-count // batches.batch_size))])
    return images[torch.arange(count, device=images.device) % len(images)].contiguous()


class _Halved:
    """``batches`` with images in float16."""

    def __init__(self, batches: Batches):
        self.batches, self.batch_size, self.num_images = batches, batches.batch_size, batches.num_images

    def __iter__(self):
        return ((images.half(), labels) for images, labels in self.batches)
