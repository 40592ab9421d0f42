"""Pass 5: how each sum is made: from its own senders, or from another sum and what tells the two apart.

In the dense model a sum is the residual stream: the sum before it and what was written since. With cut edges no two
sums are equal, and what costs is memory: a sender is as large as the stream, and many together leave the processor's
cache. So a sum may start from any sum made before it, adding and taking away a few senders; the sums of one stage (the
inputs of a layer's heads, or of its MLP) may share a *trunk*, the senders that most of them keep; and since they are
made row by row together, a sender that several use is fetched once. While a stage fetches the old senders it can also
*prepare* what the next stages will want of them. Among all this the cheapest is taken, by :class:`SumCost`.

A difference cancels digits where the trunk is much larger than what is left of it; ``steady`` says where it is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..plan import Plan
from ..steps import Range, Step, SumNorm, View

STAGES_PREPARED = (1, 2, 4)
STAGES_BACK = 8
"""How far back a sum looks for one to start from: what is older shares less, and compile time stays in proportion."""


@dataclass(frozen=True)
class SumCost:
    """What the parts of a sum take, relative to each other; the defaults for senders that do not all fit the cache."""

    fetch: float = 1.0
    """The first use of a value by the sums of a stage."""
    store: float = 1.0
    """Writing a sum for later."""
    term: float = 0.5
    """Adding a value to a sum, or taking it away."""


def choose_sums(plan: Plan, cost: SumCost = SumCost()) -> Plan:
    """Rewrite every sum in the cheapest way that was found; see the module's head."""
    stages = list(_stages(plan))
    found = [_Rewriting(plan, stages, cost, prepared) for prepared in STAGES_PREPARED]
    return min(found, key=lambda rewriting: rewriting.cost).result()


def _stages(plan: Plan) -> Iterator[tuple[int, ...]]:
    """Positions of sums that directly follow each other."""
    stage: list[int] = []
    for position, step in enumerate(plan.steps):
        if isinstance(step, SumNorm):
            stage.append(position)
        elif stage:
            yield tuple(stage)
            stage = []
    if stage:
        yield tuple(stage)


@dataclass
class _Sum:
    """A sum as it will be made. Sets of senders are the bits of an integer."""

    terms: int
    step: SumNorm
    stage: int
    base: _Sum | None = None
    stored: bool = False  # whether others start from it

    def __post_init__(self):
        self.rows: Range = self.step.out.rows
        self.biases = sum(1 << layer for layer in self.step.biases)
        self.constant = (self.step.offset, self.biases)

    @property
    def total(self) -> View:
        """Where its result is found by others."""
        return self.step.total or replace(self.step.out, name=f"r.{self.step.out.name.removeprefix('n.')}")


@dataclass
class _Stage:
    """What the sums of a stage have used so far."""

    number: int
    fetched: int = 0
    bases: set[int] = field(default_factory=set)  # by identity: what was stored, or fetched from earlier stages
    cost: float = 0.0
    sums: list[_Sum] = field(default_factory=list)


class _Rewriting:
    """One way to make all sums; ``prepared`` stages share what they fetch of the senders before them."""

    def __init__(self, plan: Plan, stages: Sequence[tuple[int, ...]], price: SumCost, prepared: int):
        self.plan, self.price = plan, price
        sums = [step for step in plan.steps if isinstance(step, SumNorm)]
        self.views = list({view.name: view for step in sums for view in step.senders}.values())
        self.bit = {view.name: 1 << position for position, view in enumerate(self.views)}
        self.made: list[_Sum] = []
        self.stages: dict[int, _Stage] = {}  # by the position of a stage's first step
        self._available = self._written_before(stages)
        for number, positions in enumerate(stages):
            last = number - number % prepared + prepared
            ahead = [step for later in stages[number + 1: last] for step in self._steps(later)
                     ] if number % prepared == 0 else []
            self.stages[positions[0]] = self._cheapest(number, self._steps(positions), ahead)
        self.cost = sum(stage.cost for stage in self.stages.values())

    def _steps(self, positions: Sequence[int]) -> list[SumNorm]:
        return [self.plan.steps[position] for position in positions]  # type: ignore[misc]

    def _written_before(self, stages: Sequence[tuple[int, ...]]) -> list[int]:
        """For each stage, the senders that exist by then."""
        masks, mask, starts = [], sum(self.bit.get(name, 0) for name in self.plan.constants), iter(stages)
        start = next(starts, None)
        for position, step in enumerate(self.plan.steps):
            if start and position == start[0]:
                masks.append(mask)
                start = next(starts, None)
            for view in step.writes:
                mask |= self.bit.get(view.name, 0)
        return masks

    def _terms(self, step: SumNorm) -> int:
        return sum(self.bit[view.name] for view in step.senders)

    def _cheapest(self, number: int, steps: list[SumNorm], ahead: list[SumNorm]) -> _Stage:
        """The sums of a stage, with or without a trunk."""
        wanted = [_Sum(self._terms(step), step, number) for step in steps]
        wanted += self._preparations(number, steps, ahead)
        trunk = self._trunk(number, wanted)
        ways = [wanted] if trunk is None else [wanted, [trunk, *map(replace, wanted)]]
        best = min((self._make(number, way) for way in ways), key=lambda stage: stage.cost)
        self.made = [each for each in self.made if each.stage > number - STAGES_BACK] + best.sums
        for each in best.sums:
            if each.base is not None:
                each.base.stored = True
        return best

    def _preparations(self, number: int, steps: list[SumNorm], ahead: list[SumNorm]) -> Iterator[_Sum]:
        """What later sums want of the senders there are, where that is more than one."""
        first = steps[0]
        seen = {self._terms(step) for step in steps}
        for step in ahead:
            terms = self._terms(step) & self._available[number]
            if step.out.rows == first.out.rows and terms.bit_count() > 1 and terms not in seen:
                seen.add(terms)
                view = replace(step.out, name=f"p.{step.readers[0]}")
                yield _Sum(terms, replace(step, readers=(), biases=first.biases, total=view, normed=None), number,
                           stored=True)

    def _trunk(self, number: int, wanted: list[_Sum]) -> _Sum | None:
        """The senders that more than half of the sums keep, if that is none of the sums themselves."""
        steady = [each for each in wanted if each.step.steady]
        if len(steady) < 2 or len({each.rows for each in steady}) > 1:
            return None
        count = [sum(each.terms >> position & 1 for each in steady) for position in range(len(self.views))]
        terms = sum(1 << position for position, kept in enumerate(count) if 2 * kept > len(steady))
        if terms.bit_count() < 2 or any(each.terms == terms for each in wanted):
            return None
        like = steady[0].step
        view = replace(like.out, name=f"t.{like.readers[0]}")
        return _Sum(terms, replace(like, readers=(), offset=None, total=view, normed=None), number, stored=True)

    def _make(self, number: int, wanted: list[_Sum]) -> _Stage:
        """Choose each sum's base, one after the other, and count the cost; changes only the sums ``wanted``."""
        stage = _Stage(number)
        for each in wanted:
            self._choose_base(each, stage)
            stage.sums.append(each)
            stage.cost += self.price.store * each.stored
        return stage

    def _choose_base(self, each: _Sum, stage: _Stage) -> None:
        cost = self._own_cost(each, stage)
        for base in (*self.made, *stage.sums):
            if self._may_start_from(each, base) and (other := self._cost_from(each, base, stage)) < cost:
                each.base, cost = base, other
        stage.cost += cost
        terms = each.terms
        if each.base is not None:
            terms ^= each.base.terms
            stage.bases.add(id(each.base))
        stage.fetched |= terms

    @staticmethod
    def _may_start_from(each: _Sum, base: _Sum) -> bool:
        covers = each.rows == base.rows or (base.rows[0] <= each.rows[0] and each.rows[1] <= base.rows[1])
        return covers and not base.biases & ~each.biases and (each.step.steady or not base.terms & ~each.terms)

    def _own_cost(self, each: _Sum, stage: _Stage) -> float:
        fetches = (each.terms & ~stage.fetched).bit_count() + (each.constant != (None, 0))
        return self.price.fetch * fetches + self.price.term * each.terms.bit_count()

    def _cost_from(self, each: _Sum, base: _Sum, stage: _Stage) -> float:
        change, first = each.terms ^ base.terms, id(base) not in stage.bases
        fetches = (change & ~stage.fetched).bit_count() + (each.constant != base.constant)
        fetches += first and base.stage != stage.number
        return (self.price.fetch * fetches + self.price.store * (first and not base.stored)
                + self.price.term * (change.bit_count() + 1))

    def result(self) -> Plan:
        """The plan with its sums made this way."""
        constants = dict(self.plan.constants)
        used = {id(each.base) for stage in self.stages.values() for each in stage.sums}
        steps: list[Step] = []
        for position, step in enumerate(self.plan.steps):
            if position in self.stages:
                steps += [self._step(each, constants) for each in self.stages[position].sums
                          if each.step.readers or id(each) in used]
            elif not isinstance(step, SumNorm):
                steps.append(step)
        return self.plan.after("choose_sums", steps=tuple(steps), constants=constants)

    def _step(self, each: _Sum, constants: dict[str, Tensor]) -> SumNorm:
        step, base, terms = each.step, each.base, each.terms
        if each.stored:
            step = replace(step, total=each.total)
        if base is None:
            return replace(step, senders=self._in_rows(terms, each.rows))
        biases = tuple(layer for layer in step.biases if layer not in base.step.biases)
        start = replace(base.total, rows=each.rows)
        return replace(step, senders=(start, *self._in_rows(terms & ~base.terms, each.rows)),
                       minus=self._in_rows(base.terms & ~terms, each.rows), biases=biases,
                       offset=_difference(step, base.step, constants))

    def _in_rows(self, terms: int, rows: Range) -> tuple[View, ...]:
        return tuple(replace(view, rows=rows) for position, view in enumerate(self.views) if terms >> position & 1)


def _difference(step: SumNorm, base: SumNorm, constants: Mapping[str, Tensor] | dict[str, Tensor]) -> str | None:
    """The constant that is left to add, or None when both offsets are the same."""
    if step.offset == base.offset:
        return None
    ours = constants[step.offset] if step.offset else 0
    name = f"{step.offset or 'none'}-{base.offset or 'none'}"
    constants[name] = ours - (constants[base.offset] if base.offset else 0)  # type: ignore[index]
    return name
