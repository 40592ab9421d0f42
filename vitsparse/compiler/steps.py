"""The steps of a plan, and the views that they read and write.

A view is a token range and a column range of a named value [rows, width] per image. Weights are named by timm's keys
and sliced by ranges, so a step holds no trained numbers.

Row ranges are in absolute token positions (class token = 0): a value that holds tokens 0..1 and one that holds all of
them are read alike, which is what lets the compiler narrow tokens without touching the steps around.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, TypeVar

Range = tuple[int, int]
S = TypeVar("S", bound="Step")


def length(span: Range) -> int:
    """How many positions a range holds."""
    return span[1] - span[0]


def _meet(a: Range, b: Range) -> bool:
    return a[0] < b[1] and b[0] < a[1]


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

    def overlaps(self, other: View) -> bool:
        """Whether both show some of the same numbers."""
        return self.name == other.name and _meet(self.rows, other.rows) and _meet(self.cols, other.cols)

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

    @cached_property
    def reads(self) -> tuple[View, ...]:
        """The views this step reads."""
        return tuple(self._views(self.reads_in))

    @cached_property
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
                found = tuple(map(change, value)) if isinstance(value, tuple) else change(value)
                if found != value:
                    changed[name] = found
        return replace(self, **changed) if changed else self

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the constants that it uses besides what its views read."""
        return ()

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
    """``total`` = offset + senders - minus + b_O of the layers in ``biases``; ``normed`` = its plain LayerNorm.

    ``readers`` are the names of the graph's readers that this input serves; none for a sum that others start from.
    ``steady`` says whether this sum may be written as a difference: what is taken away does not cancel its digits.
    """

    readers: tuple[str, ...]
    senders: tuple[View, ...]
    biases: tuple[int, ...] = ()
    offset: str | None = None
    total: View | None = None
    normed: View | None = None
    minus: tuple[View, ...] = ()
    steady: bool = True
    reads_in: ClassVar = ("senders", "minus")
    writes_in: ClassVar = ("total", "normed")

    @property
    def out(self) -> View:
        """Either of the two results: they have the same rows and columns."""
        view = self.normed or self.total
        assert view is not None
        return view

    @property
    def constants(self) -> tuple[str, ...]:
        return () if self.offset is None else (self.offset,)

    @property
    def bytes(self) -> int:
        return super().bytes + 4 * self.out.size * len(self.constants)


@dataclass(frozen=True)
class SumNorms(Step):
    """The inputs of several readers, made row by row together, so that what many of them add is read once.

    A part may start from the ``total`` of a part before it. All parts have the same rows.
    """

    parts: tuple[SumNorm, ...]

    @cached_property
    def reads(self) -> tuple[View, ...]:
        own = {part.total for part in self.parts}
        return tuple(dict.fromkeys(view for part in self.parts for view in part.reads if view not in own))

    @cached_property
    def writes(self) -> tuple[View, ...]:
        return tuple(view for part in self.parts for view in part.writes)

    def map_reads(self, change: Callable[[View], View]) -> SumNorms:
        return SumNorms(tuple(part.map_reads(change) for part in self.parts))

    def map_writes(self, change: Callable[[View], View]) -> SumNorms:
        return SumNorms(tuple(part.map_writes(change) for part in self.parts))

    @property
    def out(self) -> View:
        """A result of the last part; those of the others have the same rows and columns."""
        return self.parts[-1].out

    @property
    def constants(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.constants))

    @property
    def bytes(self) -> int:
        return super().bytes + 4 * self.out.size * len(self.constants)


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
    def constants(self) -> tuple[str, ...]:
        return (self.pattern,)

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
    """A name for what several values became: ``z.a0.h0-2,5`` for z.a0.h0, z.a0.h1-2 and z.a0.h5."""
    first = next(iter(names))
    if len(names) == 1:
        return first
    stem = first.rstrip("0123456789,-")
    numbers = [tuple(map(int, run.split("-"))) for name in names for run in name.removeprefix(stem).split(",")]
    runs = union((run[0], run[-1] + 1) for run in numbers)
    return stem + ",".join(f"{start}-{stop - 1}" if stop - start > 1 else f"{start}" for start, stop in runs)
