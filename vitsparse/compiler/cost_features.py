"""What the time of a plan follows from: the sizes of its steps, where their data come from, and who shares the work.

Sizes are counted for one thread, over a whole batch, as the native executor runs it (kernels/cpu/program.cpp): a few
images at a time, each thread on its own; or, with fewer images than threads, all threads inside each wave, each with
rows of its own where there are enough (kernels/cpu/program_schedule.h).

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
    "wave": ("wave", "shared", "moved"),
    "step": ("step",),
    "linear": ("products", "blocks", "values", "gelus", "near", "far", "memory"),
    "sum": ("near", "far", "memory", "terms", "written", "normed"),
    "attention": ("products", "scores", "values"),
    "pattern": ("products", "values"),
    "mean": ("values",),
}
"""What is counted. ``call``: calls; ``threads``: calls that wake other threads; ``tensors``: parameters and constants,
each looked at in every call; ``wave``: waves; ``shared``: waves after which threads wait for each other; ``moved``:
keys and values that another thread has made; ``step``: steps.

Of matrix products, ``products``: multiply-adds; ``blocks``: weights, as often as a block of rows reads them;
``values``: numbers read and written; ``gelus``; ``near``, ``far`` and ``memory``: weights, by where they come from. Of
sums, ``near``, ``far`` and ``memory``: numbers read, by where they come from; ``terms``: numbers added up; ``written``;
``normed``. Of attention, ``scores``: numbers of all attention patterns."""
VECTOR, BLOCK_ROWS = 16, 14  # outputs of a product that are made at once, and rows (kernels/cpu/tile.h)
ROWS_TOGETHER = 128  # rows that images are run together for (kernels/cpu/program.cpp)
WORTH_A_THREAD, WORTH_A_CHUNK, COST_OF_SHARING = 2e6, 1e5, 2e5  # operations (kernels/cpu/cost.h, program_schedule.h)
MOST_SLICES, FEWEST_ROWS = 4, 4  # into how many slices the rows of a step are cut, of how many at least (ibidem)
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
        together = share.threads if worth_sharing(plan, share.images, share.threads) else 1
        walk = _Walk(plan, share.images, together, caches)
        for features, steps in zip(waves, plan.waves, strict=True):
            for name, count in walk.wave(steps).items():
                features[name] += share.times * count
    return tuple(waves)


def features_of_call(plan: Plan, batch: int, threads: int) -> Features:
    """Those of :data:`FEATURES` that a call of ``plan`` has besides its waves."""
    several = threads > 1 and (batch >= threads or worth_sharing(plan, batch, threads))
    return {("program", "call"): 1.0, ("program", "threads"): float(several),
            ("program", "tensors"): float(len(_tensors(plan)))}


def worth_sharing(plan: Plan, images: float, threads: int) -> bool:
    """Whether threads together are faster with some images than one that keeps everything in its cache."""
    saved = images * sum(map(_operations, plan.steps)) * (1 - 1 / threads)
    return saved > WORTH_A_THREAD + COST_OF_SHARING * len(plan.waves)


def images_together(plan: Plan) -> int:
    """How many images a thread runs at a time."""
    rows = max([plan.config.num_patches, *(length(view.rows) for view in plan.values.values())])
    return max(1, ROWS_TOGETHER // rows)


class _Walk:
    """Goes through a plan once, over ``images`` images, and counts; remembers when each value was touched."""

    def __init__(self, plan: Plan, images: float, threads: int, caches: Caches):
        self.images, self.threads, self.caches = images, threads, caches
        self.slices = next(n for n in range(min(MOST_SLICES, threads), 0, -1) if threads % n == 0)
        fixed = sum(_fixed_numbers(step) for step in plan.steps)
        values = sum(view.size for view in plan.values.values())
        self.fixed = caches.place(4 * (fixed + values * images))  # weights and offsets are used once a round
        self.clock = 0.0  # bytes touched so far
        self.touched: dict[str, float] = {}

    def wave(self, steps: tuple[Step, ...]) -> Features:
        """What the next steps come to."""
        self.features: Features = defaultdict(float)
        self.features["wave", "wave"] += 1
        self.features["wave", "shared"] += self.threads > 1
        for step in steps:
            self.features["step", "step"] += 1
            self._divide(step)
            _COUNT[type(step)](self, step)
            self.clock += 4 * _fixed_numbers(step)
            for view in (*step.reads, *step.writes):
                self.clock += 4 * view.size * self.images
                self.touched[view.name] = self.clock
        return self.features

    def _divide(self, step: Step) -> None:
        """Who does the step: ``by_rows`` times ``by_columns`` threads. What is small and has few rows stays on one."""
        rows = self.images * length(step.writes[0].rows)
        self.by_rows = self.slices if rows >= self.slices * FEWEST_ROWS else 1
        small = self.images * _operations(step) < WORTH_A_CHUNK * self.by_rows
        self.by_columns = 1 if small else self.threads // self.by_rows

    def count(self, kind: str, **sizes: float) -> None:
        """Add sizes of one image, of which each thread has its part."""
        for name, size in sizes.items():
            self.features[kind, name] += size * self.images / (self.by_rows * self.by_columns)

    def product(self, rows: int, inputs: int, step: Linear | Embed) -> None:
        outputs = math.ceil(step.out.width / VECTOR) * VECTOR
        weights = inputs * outputs
        blocks = math.ceil(rows * self.images / self.by_rows / BLOCK_ROWS)
        self.features["linear", "blocks"] += blocks * weights / self.by_columns
        self.features["linear", self.fixed] += weights / self.by_columns
        self.count("linear", products=rows * weights, values=rows * (inputs + step.out.width))

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
        self.features["sum", self.fixed] += _fixed_numbers(step) / (self.by_rows * self.by_columns)
        self.count("sum", terms=terms * size, written=sum(view.size for view in step.writes),
                   normed=sum(part.normed is not None for part in parts) * size)

    def attention(self, step: Attention) -> None:
        self.count("attention", products=step.flops / 2, scores=_scores(step), values=step.bytes / 4)
        self._move(step.k.size + step.v.size)

    def pattern(self, step: ApplyPattern) -> None:
        self.count("pattern", products=step.flops / 2, values=step.bytes / 4)
        self._move(step.v.size)

    def _move(self, size: int) -> None:
        """Each thread wants the rows of all."""
        self.features["wave", "moved"] += size * self.images * (1 - 1 / self.by_rows)

    def mean(self, step: MeanRows) -> None:
        self.count("mean", values=step.source.size)


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


def _scores(step: Attention) -> int:
    return step.heads * length(step.q.rows) * length(step.k.rows)


def _operations(step: Step) -> float:
    """What the native executor takes a step for, of one image: floating-point operations, or as long as they take."""
    match step:
        case Attention():
            return step.flops + PER_SCORE * _scores(step)
        case SumNorm():
            return step.out.size * (PER_ELEMENT * (len(step.reads) + 2) + PER_TERM * len(step.reads))
        case SumNorms():
            terms = sum(len(part.reads) for part in step.parts)
            return step.out.size * (PER_ELEMENT * (len(step.reads) + 2 * len(step.parts)) + PER_TERM * terms)
        case MeanRows():
            return PER_ELEMENT * step.source.size
    return step.flops


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
