"""Measuring a device for :mod:`.cost`: random circuits run as they are, each wave of their plans timed in its place.

So every step finds its data where the steps before have left them, as no step does that is measured alone. A large
batch is run a few images at a time, so the time of a few is all that has to be measured. Prices, and the cache sizes
that explain the times best, are then fitted (:mod:`.cost_fit`).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..backends import native
from ..circuit.circuit import Circuit
from ..circuit.graph import Graph
from ..errors import InputError
from ..evaluation.ablation import Ablation
from ..evaluation.latency import machine_facts
from ..model.config import ViTConfig
from ..model.vit import ViT
from ..ops.backend import choose
from ..ops.run_program import profile_program
from .cost import CostModel
from .cost_features import FEATURES, Caches, Features, features_of, features_of_call, images_together
from .cost_fit import fit
from .cost_samples import Sample, samples
from .lower import Program, lower
from .outline import outline
from .plan import Plan
from .sparsify import sparsify
from .steps import ApplyPattern

CIRCUITS, QUICK, SEED = 120, 30, 0
LEAST_REPEATS, MOST_REPEATS = 7, 500
CACHES = tuple(Caches(near << 10, far << 20) for near in (512, 1024, 2048) for far in (8, 16, 32))
CALLED = (2, 12)  # layers of the models whose calls are measured


@dataclass(frozen=True)
class Timing:
    """Microseconds of each wave of a plan over ``batch`` images."""

    plan: Plan
    batch: int
    microseconds: np.ndarray


def measure_cost(*, circuits: int = CIRCUITS, seconds: float = 0.25, progress: bool = True) -> CostModel:
    """The :class:`CostModel` of the CPU backend on this machine, with as many threads as torch has now.

    About ``seconds`` are spent on each of ``circuits`` random circuits at each of up to three small batch sizes;
    whoever else computes meanwhile spoils the table. Raises :class:`InputError` for less than one circuit, or where the
    CPU kernels were not built.
    """
    from tqdm import tqdm

    if circuits < 1:
        raise InputError("nothing to measure", where="circuits", expected="at least 1", found=circuits)
    choose("cpu", "cpu", ("cpu",))
    threads, timings = torch.get_num_threads(), []
    chosen = itertools.islice(samples(SEED), circuits)
    for sample in tqdm(chosen, desc="measuring", total=circuits, unit="circuit", disable=None if progress else True):
        timings += time_waves(sample, threads, seconds)
    found = {caches: fit(_counted(timings, threads, caches)) for caches in CACHES}
    caches = min(found, key=lambda each: found[each].error)
    called = [(time_call(depth, batch, seconds), batch) for depth, batch in itertools.product(CALLED, {1, threads})]
    calls = [([features_of_call(plan, batch, threads)], np.array([rest])) for (plan, rest), batch in called]
    prices = found[caches].prices | fit(calls).prices
    nested = {kind: {size: prices.get((kind, size), 0.0) for size in sizes} for kind, sizes in FEATURES.items()}
    return CostModel(nested, threads, caches, machine_facts())


def _counted(timings: Sequence[Timing], threads: int, caches: Caches) -> list[tuple[Sequence[Features], np.ndarray]]:
    return [(features_of(each.plan, each.batch, threads, caches), each.microseconds) for each in timings]


def time_waves(sample: Sample, threads: int, seconds: float) -> list[Timing]:
    """A circuit at the batch sizes that large batches are made of, and at one image for all threads together."""
    plan = outline(sample.config, sample.circuit)
    program = program_of(plan)
    batches = sorted({1, threads, threads * images_together(plan)})
    return [Timing(plan, batch, wave_microseconds(plan, program, batch, seconds)) for batch in batches]


def wave_microseconds(plan: Plan, program: Program, batch: int, seconds: float) -> np.ndarray:
    """Medians of the time of each wave of ``plan``, all longer by as much as the median of whole runs is: in most runs
    some wave takes longer than usual."""
    inputs = random_images(plan.config, batch), program.code, program.blob
    once = min(float(profile_program(*inputs, 1).sum()) for _ in range(3))
    repeats = min(max(LEAST_REPEATS, round(seconds * 1e6 / max(once, 1.0))), MOST_REPEATS)
    runs = np.stack([profile_program(*inputs, 1).numpy() for _ in range(repeats)])
    medians = np.median(runs, axis=0) * np.median(runs.sum(1)) / np.median(runs, axis=0).sum()
    more = len(medians) - len(plan.waves)  # cutting images into patches is a wave of its own, before the first
    return np.append(medians[: more + 1].sum(), medians[more + 1:])


def time_call(depth: int, batch: int, seconds: float) -> tuple[Plan, float]:
    """A model of ``depth`` layers that compute next to nothing, and what a call takes besides its waves."""
    model = ViT(img_size=8, patch_size=8, embed_dim=32, depth=depth, num_heads=1, num_classes=10).eval()
    circuit = Circuit.full(Graph.of(model))
    sparse = sparsify(model, circuit, ablation=Ablation.zero(model, circuit.graph), backend="cpu").eval()
    images, times = random_images(model.config, batch), []
    with torch.inference_mode():
        end = time.perf_counter() + seconds
        while len(times) < LEAST_REPEATS or time.perf_counter() < end:
            start = time.perf_counter_ns()
            sparse(images)
            times.append((time.perf_counter_ns() - start) / 1e3)
    waves = wave_microseconds(sparse.plan, program_of(sparse.plan), batch, seconds)
    return sparse.plan, max(0.0, float(np.median(times)) - float(waves.sum()))


def program_of(plan: Plan) -> Program:
    """The program of a plan with random numbers in place of all that it lacks: no time depends on them."""
    return lower(plan, random_parameters(plan.config), random_constants(plan), native.core().pack_linear)


def random_images(config: ViTConfig, batch: int) -> Tensor:
    return torch.randn(batch, config.in_chans, config.img_size, config.img_size)


def random_parameters(config: ViTConfig) -> dict[str, Tensor]:
    """Parameters of a dense model."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in ViT(**config.to_dict()).state_dict().items()}
    return {key: torch.randn(shape) / math.sqrt(shape[-1]) for key, shape in shapes.items()}


def random_constants(plan: Plan) -> dict[str, Tensor]:
    """Values for the constants of an outline, in the shapes that its steps want."""
    tokens, shapes = plan.config.num_tokens, {}
    for step in plan.steps:
        pattern = isinstance(step, ApplyPattern)
        shapes |= dict.fromkeys(step.constants, (step.heads, tokens, tokens) if pattern else (tokens, step.out.width))
        for view in step.reads:
            if view.name in plan.constants:
                shapes[view.name] = (tokens, max(view.cols[1], shapes.get(view.name, (0, 0))[-1]))
    return {name: torch.rand(shape) / tokens for name, shape in shapes.items()}
