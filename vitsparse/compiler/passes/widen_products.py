"""Pass 4, second half: nodes of a layer that read the same input, or are read by the same sums, share wide products.

Heads (or MLP groups) behind one input become one product with their rows side by side and one attention; senders that
every sum takes together are written by one product and become one sender. Within a wide value the columns are ordered
by who reads the result, so that each outgoing product finds its columns side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..plan import Plan
from ..steps import ApplyPattern, Attention, Bias, Linear, Range, Step, SumNorm, View, Weight, joint_name

Mixing = Attention | ApplyPattern


@dataclass(frozen=True)
class _Unit:
    """One sender's private steps: products into it, the mixing of tokens if it is a head, and the product out of it."""

    incoming: tuple[Linear, ...]
    mixing: Mixing | None
    outgoing: Linear
    audience: tuple[int, ...]  # which sums read the sender

    @property
    def group(self) -> tuple:
        """Units with equal keys can be run side by side."""
        sources = tuple((step.source, step.weight.key, step.out.rows) for step in self.incoming)
        kind = () if self.mixing is None else (type(self.mixing), self.mixing.out.rows, *_constant_parts(self))
        return self.outgoing.weight.key, sources, kind


def widen_products(plan: Plan) -> Plan:
    """Merge the units of each layer; see the module's head."""
    return _Widening(plan).run()


def _constant_parts(unit: _Unit) -> tuple[bool, ...]:
    """For each of q, k, v that a mixing step reads: whether it is a constant (comes from no product of the unit)."""
    assert unit.mixing is not None
    produced = {step.out.name for step in unit.incoming}
    return tuple(view.name not in produced for view in unit.mixing.reads)


class _Widening:
    def __init__(self, plan: Plan):
        self.plan = plan
        self.constants = dict(plan.constants)
        self.merged_sender: dict[str, View] = {}  # sender value -> the value it became part of
        self._written: set[str] = set()

    def run(self) -> Plan:
        units = _find_units(self.plan)
        groups: dict[tuple, list[_Unit]] = {}
        for unit in units:
            groups.setdefault(unit.group, []).append(unit)
        together: dict[tuple, list[View]] = {}
        for unit in units:
            together.setdefault((unit.outgoing.weight.key, unit.audience), []).append(unit.outgoing.out)
        for views in together.values():
            target = replace(views[0], name=joint_name([view.name for view in views]))
            self.merged_sender |= {view.name: target for view in views}
        emit_at = {id(group[-1].outgoing): group for group in groups.values()}
        private = {id(step) for unit in units for step in (*unit.incoming, unit.mixing, unit.outgoing)}
        steps: list[Step] = []
        for step in self.plan.steps:
            if id(step) in emit_at:
                steps += self._merge(sorted(emit_at[id(step)], key=lambda unit: unit.audience))
            elif id(step) not in private:
                steps.append(self._merge_senders(step) if isinstance(step, SumNorm) else step)
        return self.plan.after("widen_products", steps=tuple(steps), constants=self.constants)

    def _merge_senders(self, step: SumNorm) -> SumNorm:
        views = {}
        for view in step.senders:
            name = self.merged_sender.get(view.name, view).name
            if name not in views:
                views[name] = view if name == view.name else replace(view, name=name)
        senders = tuple(views.values())
        return step if senders == step.senders else replace(step, senders=senders)

    def _merge(self, units: list[_Unit]) -> Iterator[Step]:
        """The steps of one group, wide."""
        views: dict[str, View] = {}  # what an incoming product of the first unit writes -> the wide view of it
        first, node = units[0], joint_name([unit.outgoing.out.name.removeprefix("s.") for unit in units])
        by_source: dict[View, list[int]] = {}
        for part, step in enumerate(first.incoming):
            by_source.setdefault(replace(step.source, rows=step.out.rows), []).append(part)
        for parts in by_source.values():
            name = "".join(first.incoming[part].out.name[0] for part in parts) + f".{node}"
            wide = _side_by_side([unit.incoming[part] for part in parts for unit in units], name)
            yield wide
            start = 0
            for part in parts:
                width = sum(unit.incoming[part].out.width for unit in units)
                views[first.incoming[part].out.name] = replace(wide.out, cols=(start, start + width))
                start += width
        if first.mixing is None:
            inner = views[first.incoming[0].out.name]
        else:
            mixing = self._merge_mixing(units, views, f"z.{node}")
            yield mixing
            inner = mixing.out
        yield from self._outgoing(units, inner)

    def _merge_mixing(self, units: list[_Unit], views: dict[str, View], name: str) -> Mixing:
        mixings = [unit.mixing for unit in units]
        first = mixings[0]
        assert first is not None

        def wide(view: View) -> View:
            if view.name in views:
                return replace(views[view.name], rows=view.rows)
            position = first.reads.index(view)
            names = [mixing.reads[position].name for mixing in mixings if mixing is not None]
            return replace(view, name=self._joined(names, dim=-1), cols=(0, view.width * len(names)))

        columns = (0, sum(mixing.out.width for mixing in mixings if mixing is not None))
        merged = replace(first.map_reads(wide), out=replace(first.out, name=name, cols=columns),
                         heads=sum(mixing.heads for mixing in mixings if mixing is not None))
        if isinstance(merged, ApplyPattern):
            names = [mixing.pattern for mixing in mixings if isinstance(mixing, ApplyPattern)]
            merged = replace(merged, pattern=self._joined(names, dim=0))
        return merged

    def _joined(self, names: list[str], dim: int) -> str:
        """The constants ``names`` concatenated, as a constant of its own."""
        if len(names) == 1:
            return names[0]
        name = joint_name(names)
        values: list[Tensor] = [self.constants[each] for each in names]
        self.constants[name] = torch.cat(values, dim)
        return name

    def _outgoing(self, units: list[_Unit], inner: View) -> Iterator[Linear]:
        """One product per audience, over its columns of ``inner``; the second into a sender adds to the first."""
        start = 0
        for audience in dict.fromkeys(unit.audience for unit in units):
            steps = [unit.outgoing for unit in units if unit.audience == audience]
            width = sum(step.source.width for step in steps)
            first, out = steps[0], self.merged_sender[steps[0].out.name]
            columns = join(tuple(span for step in steps for span in step.weight.cols))
            yield replace(first, source=replace(inner, rows=first.source.rows, cols=(start, start + width)), out=out,
                          weight=replace(first.weight, cols=columns), bias=_added([step.bias for step in steps]),
                          accumulate=out.name in self._written)
            self._written.add(out.name)
            start += width


def _side_by_side(steps: list[Linear], name: str) -> Linear:
    """One product whose output ``name`` holds those of ``steps`` side by side."""
    first = steps[0]
    rows = join(tuple(span for step in steps for span in step.weight.rows))
    weight = Weight(first.weight.key, rows, first.weight.cols)
    biases = [step.bias for step in steps if step.bias is not None]
    bias = Bias(biases[0].key, join(tuple(span for bias in biases for span in bias.rows))) if biases else None
    out = replace(first.out, name=name, cols=(0, sum(step.out.width for step in steps)))
    return replace(first, out=out, weight=weight, bias=bias)


def _added(biases: list[Bias | None]) -> Bias | None:
    """The sum of biases that are shares of one parameter."""
    present = [bias for bias in biases if bias is not None]
    return replace(present[0], scale=sum(bias.scale for bias in present)) if present else None


def join(ranges: tuple[Range, ...]) -> tuple[Range, ...]:
    """Ranges in order, neighbours that touch made one."""
    joined: list[Range] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)


def _find_units(plan: Plan) -> list[_Unit]:
    """The units of a plan, in the order of their outgoing products."""
    writer = {view.name: step for step in plan.steps for view in step.writes}
    audiences: dict[str, list[int]] = {}
    for position, step in enumerate(plan.steps):
        for view in step.reads if isinstance(step, SumNorm) else ():
            audiences.setdefault(view.name, []).append(position)
    units = []
    for step in plan.steps:
        if not isinstance(step, Linear) or step.out.name not in audiences:
            continue
        inner = writer[step.source.name]
        mixing = inner if isinstance(inner, Attention | ApplyPattern) else None
        sources = [view.name for view in mixing.reads] if mixing else [step.source.name]
        incoming = tuple(writer[name] for name in sources if isinstance(writer.get(name), Linear))
        units.append(_Unit(incoming, mixing, step, tuple(audiences[step.out.name])))
    return units
