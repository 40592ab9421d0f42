"""Measuring a device for :mod:`.cost`: small programs of many equal steps, timed with and without them.

The time of a step is the difference of the two programs over the number of steps; each step has weights and inputs of
its own, because in a real plan these come from a cache that others have used. Then, for each kind of step, the
coefficients >= 0 with the least relative error over all its sizes are found (nonnegative least squares).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..backends import native
from ..errors import InputError
from ..evaluation.latency import machine_facts
from ..model.config import ViTConfig
from ..ops.backend import choose
from ..ops.run_program import run_program
from .cost import FEATURES, KIND_OF, CostModel, features_of, splits_images
from .lower import lower
from .plan import Plan
from .steps import ApplyPattern, Attention, Bias, Embed, Linear, MeanRows, Step, SumNorm, View, Weight

COPIES, REPEATS = 8, 10
PATCH = 8
ROWS_TOGETHER = 128
SIDES, WIDTHS, HEAD_WIDTHS = (4, 8, 14), (64, 128, 256), (32, 64)
PRODUCTS = ((64, 192), (64, 64), (128, 32), (128, 384), (128, 512), (256, 32), (256, 96), (256, 256), (256, 768),
            (256, 1024), (32, 256), (96, 256), (128, 256), (512, 128), (1024, 256))  # inputs, outputs


def measure_cost(batches: Sequence[int] = (1, 32), *, seconds: float = 0.05, progress: bool = True) -> CostModel:
    """The :class:`CostModel` of the CPU backend on this machine, with as many threads as torch has now.

    ``seconds`` is spent on each of some hundred small programs; whoever else computes meanwhile spoils the table.
    Raises :class:`InputError` for batch sizes that are no positive integers, or where the CPU kernels were not built.
    """
    from tqdm import tqdm

    if not batches or any(type(batch) is not int or batch < 1 for batch in batches):
        raise InputError("batch sizes must be positive integers", where="batches", found=batches)
    choose("cpu", "cpu", ("cpu",))
    threads, cases = torch.get_num_threads(), list(_cases())
    tables = {}
    for batch in batches:
        bar = tqdm(cases, desc=f"batch {batch}", unit="case", disable=None if progress else True)
        times = [(case.step, case.microseconds(batch, threads, seconds)) for case in bar]
        tables[batch] = {kind: _fit(kind, [timed for timed in times if KIND_OF[type(timed[0])] == kind], batch,
                                    threads) for kind in FEATURES}
        tables[batch]["program"] = {"step": _call_overhead(batch, seconds)}
    return CostModel(tables, threads, machine_facts())


@dataclass(frozen=True)
class _Case:
    """``steps`` of one size behind a program ``before`` them; both write what they will."""

    config: ViTConfig
    before: tuple[Step, ...]
    steps: tuple[Step, ...]
    constants: dict[str, Tensor] = field(default_factory=dict)

    @property
    def step(self) -> Step:
        return self.steps[0]

    def microseconds(self, batch: int, threads: int, seconds: float) -> float:
        """Time of one of the steps. Of a batch that is split over the threads one share is timed: it is run a few
        images at a time (kernels/cpu/program.cpp), so the rest takes as much again, and short calls are seldom
        interrupted."""
        if splits_images(batch, threads):
            few = min(batch, threads * max(1, ROWS_TOGETHER // self.config.num_tokens))
            return batch / few * self._time(few, seconds)
        return self._time(batch, seconds)

    def _time(self, batch: int, seconds: float) -> float:
        images = torch.randn(batch, self.config.in_chans, self.config.img_size, self.config.img_size)
        runs = {name: self.program(steps, images) for name, steps in
                (("without", self.before), ("with", (*self.before, *self.steps)))}
        times = least_microseconds(runs, seconds)
        return max(0.0, times["with"] - times["without"]) / len(self.steps)

    def program(self, steps: tuple[Step, ...], images: Tensor) -> partial[Tensor]:
        """A call of the native program of ``steps``; its result is what the last one writes."""
        config, parameters = self.config, {}
        for step in steps:
            if isinstance(step, Embed):
                shape = (step.out.width, config.in_chans, config.patch_size, config.patch_size)
                parameters |= {"patch_embed.proj.weight": torch.randn(shape), "cls_token": torch.randn(1, 1, shape[0]),
                               "patch_embed.proj.bias": torch.randn(shape[0]),
                               "pos_embed": torch.randn(1, config.num_tokens, shape[0])}
            elif isinstance(step, Linear):
                parameters[step.weight.key] = torch.randn(step.out.width, step.source.width) / step.source.width**0.5
                parameters["bias"] = torch.randn(4096)
        plan = Plan(config, steps, self.constants, steps[-1].writes[-1])
        program = lower(plan, parameters, self.constants, native.core().pack_linear)
        return partial(run_program, images, program.code, program.blob)


def least_microseconds(functions: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The shortest of many calls of each, taking turns: what the device does when nobody else wants it."""
    least, end = dict.fromkeys(functions, math.inf), time.perf_counter() + seconds
    for function in functions.values():
        function()
    repeats = 0
    while repeats < REPEATS or time.perf_counter() < end:
        repeats += 1
        for name, function in functions.items():
            start = time.perf_counter_ns()
            function()
            least[name] = min(least[name], (time.perf_counter_ns() - start) / 1e3)
    return least


def _fit(kind: str, timed: list[tuple[Step, float]], batch: int, threads: int) -> dict[str, float]:
    """Coefficients of one kind of step from its measured times, in microseconds."""
    names = FEATURES[kind][1]
    sizes = np.array([[features_of(step, batch, threads)[name] for name in names] for step, _ in timed])
    times = np.array([time for _, time in timed])
    sizes, times = sizes[times > 0], times[times > 0]  # a step lost in the noise says nothing
    trust = 1 / (times + 1.0)  # relative errors count, down to steps of about a microsecond
    return dict(zip(names, nonnegative_least_squares(sizes * trust[:, None], times * trust), strict=True))


def nonnegative_least_squares(matrix: np.ndarray, target: np.ndarray) -> list[float]:
    """argmin |matrix x - target| over x >= 0, by coordinate descent on columns scaled to length 1."""
    lengths = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(lengths > 0, lengths, 1)
    gram, image, x = scaled.T @ scaled, scaled.T @ target, np.zeros(matrix.shape[1])
    for _ in range(20_000):
        before = x.copy()
        for i in np.flatnonzero(lengths):
            x[i] = max(0.0, x[i] + image[i] - gram[i] @ x)
        if np.abs(x - before).max() <= 1e-9 * np.abs(x).max():
            break
    return [float(value / length) if length else 0.0 for value, length in zip(x, lengths, strict=True)]


def _call_overhead(batch: int, seconds: float) -> float:
    """Microseconds of calling a program that does next to nothing."""
    config = ViTConfig(img_size=PATCH, patch_size=PATCH, embed_dim=16, depth=1, num_heads=1)
    case = _Case(config, (Embed(View("s", (0, 1), (0, 16)), 3 * PATCH**2),), ())
    return least_microseconds({"": case.program(case.before, torch.randn(batch, 3, PATCH, PATCH))}, seconds)[""]


def _cases() -> Iterator[_Case]:
    for side in SIDES:
        config = ViTConfig(img_size=side * PATCH, patch_size=PATCH, embed_dim=16, depth=1, num_heads=1)
        rows = (0, config.num_tokens)
        yield from itertools.chain.from_iterable(map(partial(_streams, config, rows), WIDTHS))
        for inputs, outputs in PRODUCTS:
            yield _products(config, rows, inputs, outputs, gelu=outputs >= 2 * inputs)
        for inputs, outputs in PRODUCTS[::3]:
            yield _products(config, (0, 1), inputs, outputs)
        for heads, width in itertools.product((1, 3, 8), HEAD_WIDTHS):
            yield _attention(config, rows, heads, width)
        yield _attention(config, (0, 1), 4, 32)
        yield _patterns(config, rows, 2, 32)
        yield _patterns(config, rows, 4, 64)


def _embed(config: ViTConfig, name: str, width: int) -> Embed:
    return Embed(View(name, (0, config.num_tokens), (0, width)), config.in_chans * config.patch_size**2)


def _copies(step: Step, count: int = COPIES) -> tuple[Step, ...]:
    """``step`` a few times, each writing a value of its own."""
    return tuple(step.map_writes(lambda view, copy=copy: replace(view, name=f"{view.name}.{copy}"))
                 for copy in range(count))


def _streams(config: ViTConfig, rows: tuple[int, int], width: int) -> Iterator[_Case]:
    """What moves whole streams: the embedding, and sums of few and many terms with one or two results."""
    stream, cols = _embed(config, "s", width), (0, width)
    yield _Case(config, (stream,), _copies(stream))
    yield _Case(config, (stream,), _copies(MeanRows(View("s", (1, rows[1]), cols), View("mean", (0, 1), cols))))
    senders = _copies(SumNorm((), (stream.out,), total=View("x", rows, cols)), 32)
    for terms, results in itertools.product((1, 2, 4, 12, 32), (("normed",), ("total", "normed"))):
        wanted = {name: View(name, rows, cols) for name in results}
        steps = _copies(SumNorm((), tuple(step.out for step in senders[:terms]), offset="offset", **wanted))
        yield _Case(config, (stream, *senders), steps, {"offset": torch.randn(rows[1], width)})


def _products(config: ViTConfig, rows: tuple[int, int], inputs: int, outputs: int, *, gelu: bool = False) -> _Case:
    stream = _embed(config, "s", inputs)
    step = Linear(replace(stream.out, rows=rows), View("y", rows, (0, outputs)),
                  Weight("", ((0, outputs),), ((0, inputs),)), Bias("bias", ((0, outputs),)),
                  activation="gelu" if gelu else "none")
    steps = (replace(each, weight=replace(step.weight, key=f"weight.{copy}"))
             for copy, each in enumerate(_copies(step)))
    return _Case(config, (stream,), tuple(steps))


def _attention(config: ViTConfig, rows: tuple[int, int], heads: int, head_width: int) -> _Case:
    width = heads * head_width
    stream = _embed(config, "qkv", 3 * width)
    q, k, v = (replace(stream.out, cols=(part * width, (part + 1) * width)) for part in range(3))
    return _Case(config, (stream,), _copies(Attention(replace(q, rows=rows), k, v, View("z", rows, (0, width)), heads)))


def _patterns(config: ViTConfig, rows: tuple[int, int], heads: int, head_width: int) -> _Case:
    stream = _embed(config, "v", heads * head_width)
    step = ApplyPattern("pattern", stream.out, View("z", rows, (0, heads * head_width)), heads)
    return _Case(config, (stream,), _copies(step), {"pattern": torch.rand(heads, rows[1], rows[1])})
