"""What the time of a plan follows from: the sizes of its steps, where their data come from, and who shares the work.

Sizes are counted for one thread, over a whole batch, as the native executor runs it (kernels/cpu/program.cpp): a few
images at a time, each thread on its own; or, with fewer images than threads, all threads inside each wave.

Data come from near (the thread's own L2 cache), from far (the last cache) or from memory: from near what the thread
has touched so shortly before that nothing can have driven it out, that is, less than a cache of other data ago.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from .plan import Plan
from .steps import ApplyPattern, Attention, Embed, Linear, MeanRows, Step, SumNorm, SumNorms, length

FEATURES: dict[str, tuple[str, ...]] = {
    "program": ("call", "threads", "tensors"),
    "wave": ("wave", "shared"),
    "step": ("step",),
    "linear": ("products", "blocks", "values", "gelus", "near", "far", "memory"),
    "sum": ("near", "far", "memory", "terms", "written", "normed"),
    "attention": ("products", "scores", "values"),
    "pattern": ("products", "values"),
    "mean": ("values",),
}
"""What is counted. ``call``: calls; ``threads``: calls that wake other threads; ``tensors``: parameters and constants,
each looked at in every call; ``wave``: waves; ``shared``: waves in which threads share the work; ``step``: steps.

Of matrix products, ``products``: multiply-adds; ``blocks``: weights, as often as a block of rows reads them;
``values``: numbers read and written; ``gelus``; ``near``, ``far`` and ``memory``: weights, by where they come from. Of
sums, ``near``, ``far`` and ``memory``: numbers read, by where they come from; ``terms``: numbers added up; ``written``;
``normed``. Of attention, ``scores``: numbers of all attention patterns."""
VECTOR, BLOCK_ROWS = 16, 14  # outputs of a product that are made at once, and rows (kernels/cpu/tile.h)
ROWS_TOGETHER = 128  # rows that images are run together for (kernels/cpu/program.cpp)
WORTH_A_THREAD, WORTH_A_CHUNK = 2e6, 2e5  # operations from which threads share a program, and a wave (kernels/cpu)
PER_ELEMENT, PER_TERM, PER_SCORE = 16.0, 4.0, 60.0  # operations that an element, term, score counts as (cost.h)

Features = dict[tuple[str, str], float]


@dataclass(frozen=True)
class Caches:
    """Bytes of the cache that each thread has to itself, and of the last one."""

    near: int
    far: int

    def place(self, distance: float) -> str:
        """Where data are found that were touched ``distance`` bytes ago."""
        return "near" if distance <= self.near else "far" if distance <= self.far else "memory"


@dataclass(frozen=True)
class Share:
    """A part of a batch: ``images`` at once, ``times`` one after the other, by ``threads`` together."""

    images: float
    times: int
    threads: int


def shares(plan: Plan, batch: int, threads: int) -> Iterator[Share]:
    """What one thread has to do of a batch."""
    left = batch % threads if batch < 8 * threads else 0
    even = batch - left
    if even:
        groups = min(even, math.ceil(even / (images_together(plan) * threads)) * threads)
        yield Share(even / groups, math.ceil(groups / threads), 1)
    if left:
        yield Share(left, 1, threads)


def features_of(plan: Plan, batch: int, threads: int, caches: Caches) -> tuple[Features, ...]:
    """The :data:`FEATURES` of each wave of ``plan`` over ``batch`` images; those of the call come apart."""
    waves: list[Features] = [defaultdict(float) for _ in plan.waves]
    for share in shares(plan, batch, threads):
        walk = _Walk(plan, share.images, caches)
        counted = [walk.wave(steps) for steps in plan.waves]
        together = share.threads if sum(work for _, work in counted) >= WORTH_A_THREAD else 1
        for features, (counts, work) in zip(waves, counted, strict=True):
            helpers = min(together, max(1.0, work / WORTH_A_CHUNK))
            for name, count in counts.items():
                features[name] += share.times * count / helpers
            features["wave", "wave"] += share.times
            features["wave", "shared"] += share.times * (helpers > 1)
    return tuple(waves)


def features_of_call(plan: Plan, batch: int, threads: int) -> Features:
    """Those of :data:`FEATURES` that a call of ``plan`` has besides its waves."""
    return {("program", "call"): 1.0, ("program", "threads"): float(threads > 1 and (batch > 1 or _is_large(plan))),
            ("program", "tensors"): float(len(_tensors(plan)))}


def _is_large(plan: Plan) -> bool:
    """Whether an image alone is worth several threads."""
    return plan.flops >= WORTH_A_THREAD


def images_together(plan: Plan) -> int:
    """How many images a thread runs at a time."""
    rows = max([plan.config.num_patches, *(length(view.rows) for view in plan.values.values())])
    return max(1, ROWS_TOGETHER // rows)


class _Walk:
    """Goes through a plan once, over ``images`` images, and counts; remembers when each value was touched."""

    def __init__(self, plan: Plan, images: float, caches: Caches):
        self.images, self.caches = images, caches
        fixed = sum(_fixed_numbers(step) for step in plan.steps)
        values = sum(view.size for view in plan.values.values())
        self.fixed = caches.place(4 * (fixed + values * images))  # weights and offsets are used once a round
        self.clock = 0.0  # bytes touched so far
        self.touched: dict[str, float] = {}

    def wave(self, steps: tuple[Step, ...]) -> tuple[Features, float]:
        """What the next steps come to, and the operations in them."""
        self.features: Features = defaultdict(float)
        self.work = 0.0
        for step in steps:
            self.features["step", "step"] += 1
            _COUNT[type(step)](self, step)
            self.clock += 4 * _fixed_numbers(step)
            for view in (*step.reads, *step.writes):
                self.clock += 4 * view.size * self.images
                self.touched[view.name] = self.clock
        return self.features, self.work

    def count(self, kind: str, **sizes: float) -> None:
        """Add sizes of one image."""
        for name, size in sizes.items():
            self.features[kind, name] += size * self.images

    def product(self, rows: int, inputs: int, step: Linear | Embed) -> None:
        outputs = math.ceil(step.out.width / VECTOR) * VECTOR
        weights = inputs * outputs
        self.features["linear", "blocks"] += math.ceil(rows * self.images / BLOCK_ROWS) * weights
        self.features["linear", self.fixed] += weights
        self.count("linear", products=rows * weights, values=rows * (inputs + step.out.width))
        self.work += 2 * rows * inputs * step.out.width * self.images

    def embed(self, step: Embed) -> None:
        self.product(length(step.out.rows) - (step.out.rows[0] == 0), step.patch_dim, step)

    def linear(self, step: Linear) -> None:
        self.product(length(step.out.rows), step.source.width, step)
        self.count("linear", values=step.out.size * step.accumulate, gelus=step.out.size * (step.activation == "gelu"))

    def sum_norm(self, step: SumNorm) -> None:
        self.sums(step, (step,))

    def sum_norms(self, step: SumNorms) -> None:
        self.sums(step, step.parts)

    def sums(self, step: Step, parts: tuple[SumNorm, ...]) -> None:
        size, terms = parts[0].out.size, sum(len(part.reads) for part in parts)
        for view in step.reads:
            self.count("sum", **{self.caches.place(self.clock - self.touched.get(view.name, 0.0)): view.size})
        self.features["sum", self.fixed] += _fixed_numbers(step)
        self.count("sum", terms=terms * size, written=sum(view.size for view in step.writes),
                   normed=sum(part.normed is not None for part in parts) * size)
        self.work += self.images * size * (PER_ELEMENT * (len(step.reads) + 2 * len(parts)) + PER_TERM * terms)

    def attention(self, step: Attention) -> None:
        scores = step.heads * length(step.q.rows) * length(step.k.rows)
        self.count("attention", products=step.flops / 2, scores=scores, values=step.bytes / 4)
        self.work += (step.flops + PER_SCORE * scores) * self.images

    def pattern(self, step: ApplyPattern) -> None:
        self.count("pattern", products=step.flops / 2, values=step.bytes / 4)
        self.work += step.flops * self.images

    def mean(self, step: MeanRows) -> None:
        self.count("mean", values=step.source.size)
        self.work += PER_ELEMENT * step.source.size * self.images


_COUNT = {Embed: _Walk.embed, Linear: _Walk.linear, SumNorm: _Walk.sum_norm, SumNorms: _Walk.sum_norms,
          Attention: _Walk.attention, ApplyPattern: _Walk.pattern, MeanRows: _Walk.mean}


def _fixed_numbers(step: Step) -> int:
    """Weights and constants that a step reads, the same for all images; a bias is too small to count."""
    match step:
        case Embed():
            return step.patch_dim * step.out.width
        case Linear():
            return step.source.width * step.out.width
        case SumNorm():
            return step.out.size * (step.offset is not None or bool(step.biases))
        case SumNorms():
            return sum(map(_fixed_numbers, step.parts))
        case ApplyPattern():
            return step.heads * length(step.out.rows) * length(step.v.rows)
    return 0


def _tensors(plan: Plan) -> set[str]:
    """Names of the parameters and constants of a plan."""
    names = {"patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed"}
    for step in plan.steps:
        names.update(step.constants)
        if isinstance(step, Linear):
            norm = (f"{step.norm}.weight", f"{step.norm}.bias") if step.norm else ()
            names.update((step.weight.key, *norm, *([step.bias.key] if step.bias else ()),
                          *([step.scale] if step.scale else ())))
    return names
