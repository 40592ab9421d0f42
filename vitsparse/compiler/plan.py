"""Plan: how to run a circuit, as a numbered program over buffers.

A plan is a straight line of steps. Each reads and writes *views*: a token range and a column range of a named value
[rows, width] per image. A name in ``constants`` is the same for every image. Weights are named by timm's keys and
sliced by ranges, so a plan holds no trained numbers but its constants; it can be run from any parameters of that shape.

Row ranges are in absolute token positions (class token = 0): a value that holds tokens 0..1 and one that holds all of
them are read alike, which is what lets the compiler narrow tokens without touching the steps around.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from ..circuit.frozen import Frozen
from ..model.config import ViTConfig

Range = tuple[int, int]
S = TypeVar("S", bound="Step")


def length(span: Range) -> int:
    """How many positions a range holds."""
    return span[1] - span[0]


def total_length(spans: tuple[Range, ...]) -> int:
    """How many positions several ranges hold together."""
    return sum(map(length, spans))


@dataclass(frozen=True)
class View:
    """Tokens ``rows`` and columns ``cols`` of the value ``name``."""

    name: str
    rows: Range
    cols: Range

    @property
    def width(self) -> int:
        """How many columns."""
        return length(self.cols)

    @property
    def size(self) -> int:
        """How many numbers per image."""
        return length(self.rows) * self.width

    def __str__(self) -> str:
        return f"{self.name}[{self.rows[0]}:{self.rows[1]}, {self.cols[0]}:{self.cols[1]}]"


@dataclass(frozen=True)
class Weight:
    """Rows and columns (tuples of ranges, in order) of the parameter ``key``."""

    key: str
    rows: tuple[Range, ...]
    cols: tuple[Range, ...]


@dataclass(frozen=True)
class Bias:
    """Entries (ranges, in order) of the parameter ``key``, times ``scale`` (MLP groups carry a share of the bias)."""

    key: str
    rows: tuple[Range, ...]
    scale: float = 1.0


@dataclass(frozen=True)
class Step:
    """One operation. Subclasses name the fields that hold the views they read and write."""

    reads_in: ClassVar[tuple[str, ...]] = ()
    writes_in: ClassVar[tuple[str, ...]] = ()

    @property
    def reads(self) -> tuple[View, ...]:
        """The views this step reads."""
        return tuple(self._views(self.reads_in))

    @property
    def writes(self) -> tuple[View, ...]:
        """The views this step writes."""
        return tuple(self._views(self.writes_in))

    def _views(self, names: tuple[str, ...]) -> Iterator[View]:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, tuple):
                yield from value
            elif value is not None:
                yield value

    def map_reads(self: S, change: Callable[[View], View]) -> S:
        """The same step with ``change`` applied to every view it reads."""
        return self._map(self.reads_in, change)

    def map_writes(self: S, change: Callable[[View], View]) -> S:
        """The same step with ``change`` applied to every view it writes."""
        return self._map(self.writes_in, change)

    def _map(self: S, names: tuple[str, ...], change: Callable[[View], View]) -> S:
        changed = {}
        for name in names:
            value = getattr(self, name)
            if value is not None:
                changed[name] = tuple(map(change, value)) if isinstance(value, tuple) else change(value)
        return replace(self, **changed)

    @property
    def flops(self) -> int:
        """Multiply-adds counted as two, per image; norms, sums and activations are not counted."""
        return 0

    @property
    def bytes(self) -> int:
        """Activation bytes read and written per image, float32."""
        return 4 * sum(view.size for view in (*self.reads, *self.writes))


@dataclass(frozen=True)
class Embed(Step):
    """Images to the output of ``input``: patches times the patch weights, class token, positions (where not cut)."""

    out: View
    patch_dim: int
    class_token: bool = True
    positions: bool = True
    writes_in: ClassVar = ("out",)

    @property
    def flops(self) -> int:
        patches = length(self.out.rows) - (self.out.rows[0] == 0)
        return 2 * patches * self.patch_dim * self.out.width


@dataclass(frozen=True)
class SumNorm(Step):
    """``total`` = offset + sum of senders + b_O of the layers in ``biases``; ``normed`` = its LayerNorm without affine.

    ``readers`` are the names of the graph's readers that this input serves.
    """

    readers: tuple[str, ...]
    senders: tuple[View, ...]
    biases: tuple[int, ...] = ()
    offset: str | None = None
    total: View | None = None
    normed: View | None = None
    reads_in: ClassVar = ("senders",)
    writes_in: ClassVar = ("total", "normed")

    @property
    def out(self) -> View:
        """Either of the two results: they have the same rows and columns."""
        view = self.normed or self.total
        assert view is not None
        return view

    @property
    def bytes(self) -> int:
        return super().bytes + 4 * self.out.size * (self.offset is not None)


@dataclass(frozen=True)
class Linear(Step):
    """``out`` (+)= activation(source' @ weight.T + bias) * scale; source' has the affine part of ``norm`` applied.

    ``norm`` names a LayerNorm (its weight and bias), ``scale`` a LayerScale parameter; ``accumulate`` adds to ``out``.
    """

    source: View
    out: View
    weight: Weight
    bias: Bias | None = None
    norm: str | None = None
    scale: str | None = None
    activation: str = "none"
    accumulate: bool = False
    reads_in: ClassVar = ("source",)
    writes_in: ClassVar = ("out",)

    @property
    def flops(self) -> int:
        return 2 * length(self.out.rows) * self.source.width * self.out.width

    @property
    def bytes(self) -> int:
        return super().bytes + 4 * self.out.size * self.accumulate


@dataclass(frozen=True)
class Attention(Step):
    """``out`` = softmax(q k^T / sqrt(head_dim)) v for ``heads`` heads side by side in the columns."""

    q: View
    k: View
    v: View
    out: View
    heads: int
    reads_in: ClassVar = ("q", "k", "v")
    writes_in: ClassVar = ("out",)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.out.width // self.heads

    @property
    def flops(self) -> int:
        return 4 * length(self.q.rows) * length(self.k.rows) * self.out.width


@dataclass(frozen=True)
class ApplyPattern(Step):
    """``out`` = pattern @ v: attention of heads whose pattern [heads, Tq, Tk] is the constant ``pattern``."""

    pattern: str
    v: View
    out: View
    heads: int
    reads_in: ClassVar = ("v",)
    writes_in: ClassVar = ("out",)

    @property
    def flops(self) -> int:
        return 2 * length(self.out.rows) * length(self.v.rows) * self.out.width


@dataclass(frozen=True)
class MeanRows(Step):
    """``out`` (one row) = mean of ``source`` over its tokens."""

    source: View
    out: View
    reads_in: ClassVar = ("source",)
    writes_in: ClassVar = ("out",)


@dataclass(frozen=True, eq=False)
class Plan(Frozen):
    """A program for a ViT of shape ``config``; see the module's head.

    ``constants`` maps names to tensors ([rows, width] with all rows, patterns [heads, Tq, Tk]); ``parameters`` maps a
    parameter's key to the ranges of the dense one that are kept, one tuple of ranges per sliced dimension; ``output``
    is the view that holds the result; ``passes`` names the passes that made the plan.
    """

    config: ViTConfig
    steps: tuple[Step, ...]
    constants: Mapping[str, Tensor]
    output: View
    parameters: Mapping[str, tuple[tuple[Range, ...], ...]] = field(default_factory=dict)
    passes: tuple[str, ...] = ()

    def __post_init__(self):
        self._freeze("constants")
        self._freeze("parameters")

    def after(self, name: str, **changes: Any) -> Plan:
        """A copy with ``changes``, with pass ``name`` recorded, and without the constants nobody names any more."""
        plan = replace(self, passes=(*self.passes, name), **changes)
        return replace(plan, constants={key: value for key, value in plan.constants.items() if key in plan.names_read})

    @cached_property
    def names_read(self) -> frozenset[str]:
        """Names of all values and constants that some step (or the output) reads."""
        names = {view.name for step in self.steps for view in step.reads} | {self.output.name}
        names |= {step.offset for step in self.steps if isinstance(step, SumNorm) and step.offset}
        names |= {step.pattern for step in self.steps if isinstance(step, ApplyPattern)}
        return frozenset(names)

    @cached_property
    def values(self) -> dict[str, View]:
        """The hull of everything written to each value: its rows and width."""
        hulls: dict[str, View] = {}
        for step in self.steps:
            for view in step.writes:
                hulls[view.name] = hull(hulls.get(view.name, view), view)
        return hulls

    @property
    def flops(self) -> int:
        """FLOPs of one image."""
        return sum(step.flops for step in self.steps)

    @property
    def bytes(self) -> int:
        """Activation bytes of one image."""
        return sum(step.bytes for step in self.steps)

    def __str__(self) -> str:
        return "\n".join(_lines(self))

    def __repr__(self) -> str:
        passes = ", ".join(self.passes) or "none"
        return f"Plan({len(self.steps)} steps, {self.flops / 1e6:,.2f} MFLOP an image, passes: {passes})"


def hull(a: View, b: View) -> View:
    """The smallest view of one value that covers both."""
    return View(a.name, (min(a.rows[0], b.rows[0]), max(a.rows[1], b.rows[1])),
                (min(a.cols[0], b.cols[0]), max(a.cols[1], b.cols[1])))


def union(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Sorted, disjoint ranges that cover exactly ``ranges``."""
    merged: list[Range] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return tuple(merged)


def joint_name(names: Collection[str]) -> str:
    """A name for what several values became: ``z.a0.h0-2,5`` for z.a0.h0, z.a0.h1, z.a0.h2 and z.a0.h5."""
    first = next(iter(names))
    if len(names) == 1:
        return first
    stem = first.rstrip("0123456789")
    numbers = [int(name.removeprefix(stem)) for name in names]
    runs = union((number, number + 1) for number in numbers)
    return stem + ",".join(f"{start}-{stop - 1}" if stop - start > 1 else f"{start}" for start, stop in runs)


def dense_flops(config: ViTConfig) -> int:
    """FLOPs of one image through the dense model: every token, head and hidden unit."""
    tokens, width, hidden = config.num_tokens, config.embed_dim, config.mlp_hidden
    block = 2 * tokens * width * (4 * width + 2 * hidden) + 4 * tokens * tokens * width
    patches = 2 * config.num_patches * config.in_chans * config.patch_size**2 * width
    return config.depth * block + patches + 2 * width * config.num_classes


def _lines(plan: Plan) -> Iterator[str]:
    share = plan.flops / dense_flops(plan.config)
    yield (f"plan: {len(plan.steps)} steps, {plan.flops / 1e6:.3f} MFLOP an image ({share:.1%} of dense), "
           f"{plan.bytes / 1e3:.1f} kB of activations; passes: {', '.join(plan.passes) or 'none'}")
    texts = [_describe(step) for step in plan.steps]
    column = max(map(len, texts), default=0)
    for number, (step, text) in enumerate(zip(plan.steps, texts, strict=True)):
        out = step.writes[-1]
        shape = f"{length(out.rows)}x{out.width}"
        yield f"{number:4d}  {text:<{column}} {shape:>9} {step.flops / 1e6:10.3f} MFLOP {step.bytes / 1e3:9.1f} kB"
    yield f"      return {plan.output}{' (constant)' if plan.output.name in plan.constants else ''}"


def _describe(step: Step) -> str:
    out = " ".join(map(str, step.writes))
    match step:
        case Embed():
            lost = [f", no {part}" for part in ("class_token", "positions") if not getattr(step, part)]
            return f"{out} = embed(images{''.join(lost)})"
        case SumNorm():
            terms = [view.name for view in step.senders] + ([step.offset] if step.offset else [])
            shown = terms if len(terms) <= 4 else [*terms[:2], f"... {len(terms) - 3} more", terms[-1]]
            biases = f" + {len(step.biases)} b_O" if step.biases else ""
            return f"{out} = {'norm' if step.normed else 'sum'}({' + '.join(shown)}{biases})"
        case Linear():
            call = f"{step.source.name} @ {step.weight.key.removesuffix('.weight')}"
            call = f"gelu({call})" if step.activation == "gelu" else call
            return f"{out} {'+=' if step.accumulate else '='} {call}"
        case Attention():
            sources = ", ".join(dict.fromkeys(view.name for view in step.reads))
            return f"{out} = attention({sources}; {step.heads} heads)"
        case ApplyPattern():
            return f"{out} = {step.pattern} @ {step.v.name}; {step.heads} heads"
        case MeanRows():
            return f"{out} = mean rows of {step.source}"
    raise TypeError(type(step).__name__)
