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

from vitsparse import Ablation, Circuit, Graph, InputError, SparseViT, ViT, sparsify
from vitsparse.data import Batches
from vitsparse.evaluation.baselines import BASELINES, CUDA_BASELINES
from vitsparse.evaluation.evaluate import device_of
from vitsparse.evaluation.intervals import right_answers
from vitsparse.evaluation.latency import PAUSE, Latency, measure_rounds

# On CPUs torch.compile takes longer than OpenVINO on every machine seen (benchmarks/results), and as long to compile as
# everything else here together.
CPU_RUNTIMES, GPU_RUNTIMES = ("eager", "openvino"), ("eager", "compile", "tensorrt")
LOOPS = 3  # of the whole evaluation
Run = Callable[[], object]


def latency(model: ViT | SparseViT, dense: ViT, batches: Batches, sizes: tuple[int, ...],
            seconds: float) -> dict[str, Any]:
    """{"batches": {size: ...}, "loop": ...}: see the two functions below; on GPUs all candidates compute in float16.

    ``accuracy`` is that of the very model that is timed; ``seconds`` is how long each candidate is (0: a
    rehearsal, two calls each, the first to warm up).
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
    """Milliseconds of a call of the model and of the dense one, each at its fastest, and the ratio of the dense one's
    to the model's, round by round. A model that is dense too, of any shape, has the same runtimes to choose from.

    ``uncut`` is the dense model on our own kernels, which says what of a circuit's speed is theirs.
    """
    notes: list[str] = []
    runs = {"dense": _under_all(dense, images, notes), "uncut": _compiled(_uncut(dense), images),
            "model": _compiled(model, images) if isinstance(model, SparseViT) else _under_all(model, images, [])}
    often = {"warmup": 5, "repeats": 30} if seconds else {"warmup": 1, "repeats": 1}
    rounds = measure_rounds({f"{whose} {name}": run for whose, named in runs.items() for name, run in named.items()},
                            **often, min_seconds=seconds, device=images.device,
                            pause=0.0 if images.device.type == "cuda" else PAUSE)
    times = {whose: {name: rounds[f"{whose} {name}"] for name in named} for whose, named in runs.items()}
    strongest, backend, own = (_fastest(times[whose]) for whose in ("dense", "model", "uncut"))
    ours, uncut = times["model"][backend], times["uncut"][own]
    return {"model": {"backend": backend, **asdict(Latency.of(ours))},
            "dense": {name: asdict(Latency.of(found)) for name, found in times["dense"].items()},
            "strongest": strongest, "speedup": _ratio(times["dense"][strongest], ours),
            "uncut": {"backend": own, **asdict(Latency.of(uncut)), "speedup": _ratio(uncut, ours)}, "notes": notes}


def _ratio(theirs: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    found = asdict(Latency.of(theirs / ours))
    return {name: found[name] for name in ("p20", "p50", "p80")}


def _uncut(dense: ViT) -> SparseViT:
    graph = Graph.of(dense, granularity="layer")
    return sparsify(dense, Circuit.full(graph), ablation=Ablation.zero(dense, graph=graph)).eval()


def _under_all(model: ViT, images: Tensor, notes: list[str]) -> dict[str, Run]:
    """A dense model under each runtime that is here; ``notes`` receives what is missing."""
    gpu, found = images.device.type == "cuda", {}
    runtimes: Mapping[str, Callable[[nn.Module, Tensor], Run]] = CUDA_BASELINES if gpu else BASELINES
    for name in GPU_RUNTIMES if gpu else CPU_RUNTIMES:
        try:
            found[name] = runtimes[name](model, images)
        except InputError as error:
            notes.append(f"{name}: left out, {error.what}")
    return found


def _compiled(model: SparseViT, images: Tensor) -> dict[str, Run]:
    """A sparse model by its backend: on a GPU as a captured graph."""
    if images.device.type == "cuda":
        captured = model.capture(images)
        return {f"{model.chosen_backend}, {captured.how}": captured.replay}
    return {model.chosen_backend: functools.partial(model, images)}


def _fastest(times: Mapping[str, np.ndarray]) -> str:
    return min(times, key=lambda name: float(np.median(times[name])))


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
