"""Pass 4, first half: readers that see the same senders and the same offset share one sum and one norm."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter

from ..plan import Plan
from ..steps import Range, Step, SumNorm, View, joint_name

_NAME_AND_COLS = attrgetter("name", "cols")


def group_readers(plan: Plan) -> Plan:
    """Merge equal SumNorm steps into the first of them; its rows become the hull of theirs."""
    groups: dict[tuple, list[SumNorm]] = {}
    for step in plan.steps:
        if isinstance(step, SumNorm):
            groups.setdefault(_key(step), []).append(step)
    first = {id(group[0]): group for group in groups.values()}
    renamed = {step.out.name: _name(group) for group in groups.values() if len(group) > 1 for step in group}
    steps: list[Step] = []
    for step in plan.steps:
        if not isinstance(step, SumNorm):
            steps.append(step.map_reads(lambda view: _rename(view, renamed)))
        elif id(step) in first:
            steps.append(_merge(first[id(step)]).map_writes(lambda view: _rename(view, renamed)))
    return plan.after("group_readers", steps=tuple(steps), output=_rename(plan.output, renamed))


def _key(step: SumNorm) -> tuple:
    return tuple(map(_NAME_AND_COLS, step.senders)), step.offset, step.biases, step.normed is None


def _name(group: list[SumNorm]) -> str:
    """``n.a0.h0-3`` (with the parts, as in ``n.a0.h0-3<qk>``, where those are not all) or the first reader's name."""
    own = group[0].out.name
    split = [step.out.name.partition("<") for step in group]
    heads, parts = sorted({head for head, _, _ in split}), {part.rstrip(">") for _, _, part in split}
    same_layer = len({head.rstrip("0123456789") for head in heads}) == 1
    if len(group) == 1 or not same_layer or len(heads) * len(parts) != len(group):
        return own
    suffix = "".join(part for part in "qkv" if part in parts)
    return joint_name(heads) + (f"<{suffix}>" if suffix not in ("", "qkv") else "")


def _merge(group: list[SumNorm]) -> SumNorm:
    if len(group) == 1:
        return group[0]
    rows: Range = (min(step.out.rows[0] for step in group), max(step.out.rows[1] for step in group))

    def stretch(view: View) -> View:
        return view if view.rows == rows else replace(view, rows=rows)

    readers = tuple(name for step in group for name in step.readers)
    return replace(group[0], readers=readers).map_reads(stretch).map_writes(stretch)


def _rename(view: View, names: dict[str, str]) -> View:
    return replace(view, name=names[view.name]) if view.name in names else view
