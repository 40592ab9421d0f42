"""Steps made of others that one GPU kernel runs together: what lies between them is never stored."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from .steps import Attention, Linear, Step, SumNorm, View


@dataclass(frozen=True)
class Joined(Step):
    """Steps one after the other. Subclasses name the fields that hold them, in order."""

    parts_in: ClassVar[tuple[str, ...]] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps, in order."""
        return tuple(getattr(self, name) for name in self.parts_in)

    @cached_property
    def reads(self) -> tuple[View, ...]:
        return self.steps[0].reads

    @cached_property
    def writes(self) -> tuple[View, ...]:
        first, *_, last = self.steps
        total = (first.total,) if isinstance(first, SumNorm) and first.total is not None else ()
        return (*total, *last.writes)

    @property
    def constants(self) -> tuple[str, ...]:
        return self.steps[0].constants

    @property
    def flops(self) -> int:
        return sum(step.flops for step in self.steps)


@dataclass(frozen=True)
class QkvAttention(Joined):
    """``qkv`` and the ``attention`` that alone reads what it makes."""

    qkv: Linear
    attention: Attention
    parts_in: ClassVar = ("qkv", "attention")


@dataclass(frozen=True)
class NormLinear(Joined):
    """A product, and the sum and norm in front of it."""

    input: SumNorm
    product: Linear
    parts_in: ClassVar = ("input", "product")


@dataclass(frozen=True)
class Mlp(Joined):
    """An MLP's two products, and the sum and norm in front of it: no normed input and no hidden units are stored."""

    input: SumNorm
    up: Linear
    down: Linear
    parts_in: ClassVar = ("input", "up", "down")
