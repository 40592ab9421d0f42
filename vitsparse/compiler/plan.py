"""Plan: how to run a circuit, as a numbered program over buffers.

A plan is a straight line of steps (:mod:`.steps`). A name in ``constants`` is the same for every image. A plan holds no
trained numbers but its constants; it can be run from any parameters of its shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from ..circuit.frozen import Frozen
from ..model.config import ViTConfig
from .joined_steps import Joined, Mlp, NormLinear, QkvAttention
from .memory import lifetimes, place, sizes
from .steps import (
    ApplyPattern,
    Attention,
    Embed,
    Linear,
    MeanRows,
    Range,
    Step,
    SumNorm,
    SumNorms,
    View,
    hull,
    length,
)


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
        return frozenset(names.union(*(step.constants for step in self.steps)))

    @cached_property
    def values(self) -> dict[str, View]:
        """The hull of everything written to each value: its rows and width."""
        hulls: dict[str, View] = {}
        for step in self.steps:
            for view in step.writes:
                hulls[view.name] = hull(hulls.get(view.name, view), view)
        return hulls

    @cached_property
    def waves(self) -> tuple[tuple[Step, ...], ...]:
        """The steps, cut where one needs another to be finished: those of one wave may run at once."""
        waves: list[list[Step]] = []
        for step in self.steps:
            if not waves or any(conflict(step, other) for other in waves[-1]):
                waves.append([])
            waves[-1].append(step)
        return tuple(map(tuple, waves))

    @cached_property
    def memory(self) -> tuple[dict[str, int], int]:
        """Where each value lies in the arena of an image, and the size of the arena, both in floats."""
        elsewhere = frozenset((*self.constants, self.output.name))
        config = self.config
        floats = sizes(self.values, config.num_patches, config.in_chans * config.patch_size**2)
        return place(lifetimes(self.waves, elsewhere), floats)

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


def conflict(one: Step, other: Step) -> bool:
    """Whether one of two steps reads or writes what the other writes."""
    return any(mine.overlaps(theirs) for a, b in ((one, other), (other, one))
               for mine in a.writes for theirs in (*b.reads, *b.writes))


def dense_flops(config: ViTConfig) -> int:
    """FLOPs of one image through the dense model: every token, head and hidden unit."""
    tokens, width, hidden = config.num_tokens, config.embed_dim, config.mlp_hidden
    block = 2 * tokens * width * (4 * width + 2 * hidden) + 4 * tokens * tokens * width
    patches = 2 * config.num_patches * config.in_chans * config.patch_size**2 * width
    return config.depth * block + patches + 2 * width * config.num_classes


def _lines(plan: Plan) -> Iterator[str]:
    share = plan.flops / dense_flops(plan.config)
    yield (f"plan: {len(plan.steps)} steps in {len(plan.waves)} waves, {plan.flops / 1e6:.3f} MFLOP an image "
           f"({share:.1%} of dense), {plan.bytes / 1e3:.1f} kB moved, {4 * plan.memory[1] / 1e3:.1f} kB of buffers; "
           f"passes: {', '.join(plan.passes) or 'none'}")
    wave_of = [number for number, wave in enumerate(plan.waves) for _ in wave]
    texts = [_describe(step) for step in plan.steps]
    column = max((len(line) for lines in texts for line in lines), default=0)
    for number, (step, (text, *parts)) in enumerate(zip(plan.steps, texts, strict=True)):
        out = step.writes[-1]
        shape = f"{length(out.rows)}x{out.width}"
        wave = f"w{wave_of[number]}"
        yield (f"{number:4d} {wave:>4}  {text:<{column}} {shape:>9} {step.flops / 1e6:10.3f} MFLOP "
               f"{step.bytes / 1e3:9.1f} kB")
        yield from (f"{'':11}{part}" for part in parts)
    yield f"           return {plan.output}{' (constant)' if plan.output.name in plan.constants else ''}"


def _describe(step: Step) -> tuple[str, ...]:
    """A step in a line, or in several."""
    if isinstance(step, SumNorms):
        return f"{len(step.parts)} sums over {len(step.reads)} values", *(f"  {_call(part)}" for part in step.parts)
    if isinstance(step, Joined):
        out = " ".join(map(str, step.writes))
        return f"{out} = {_KERNELS[type(step)]}", *(f"  {_call(part)}" for part in step.steps)
    return (_call(step),)


_KERNELS: dict[type[Step], str] = {QkvAttention: "qkv_attention", NormLinear: "linear", Mlp: "mlp"}


def _call(step: Step) -> str:
    out = " ".join(map(str, step.writes))
    match step:
        case Embed():
            lost = [f", no {part}" for part in ("class_token", "positions") if not getattr(step, part)]
            return f"{out} = embed(images{''.join(lost)})"
        case SumNorm():
            terms = [view.name for view in step.senders] + ([step.offset] if step.offset else [])
            biases = f" + {len(step.biases)} b_O" if step.biases else ""
            minus = f" - {' - '.join(_few([view.name for view in step.minus]))}" if step.minus else ""
            return f"{out} = {'norm' if step.normed else 'sum'}({' + '.join(_few(terms))}{biases}{minus})"
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


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= 4 else [*names[:2], f"... {len(names) - 3} more", names[-1]]
