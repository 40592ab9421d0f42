"""Pass 4, first half: readers that see the same senders and the same offset share one sum and one norm."""

from __future__ import annotations

from dataclasses import replace

from ..plan import Plan, Range, Step, SumNorm, View


def group_readers(plan: Plan) -> Plan:
    """Merge equal SumNorm steps into the first of them; its rows become the hull of theirs."""
    groups: dict[tuple, list[SumNorm]] = {}
    for step in plan.steps:
        if isinstance(step, SumNorm):
            groups.setdefault(_key(step), []).append(step)
    renamed = {view.name: group[0].out.name for group in groups.values() for step in group for view in step.writes}
    steps: list[Step] = []
    for step in plan.steps:
        if not isinstance(step, SumNorm):
            steps.append(step.map_reads(lambda view: _rename(view, renamed)))
        elif step is groups[_key(step)][0]:
            steps.append(_merge(groups[_key(step)]).map_reads(lambda view: _rename(view, renamed)))
    return plan.after("group_readers", steps=tuple(steps), output=_rename(plan.output, renamed))


def _key(step: SumNorm) -> tuple:
    senders = tuple((view.name, view.cols) for view in step.senders)
    return senders, step.offset, step.biases, step.normed is None


def _merge(group: list[SumNorm]) -> SumNorm:
    rows: Range = (min(step.out.rows[0] for step in group), max(step.out.rows[1] for step in group))

    def stretch(view: View) -> View:
        return replace(view, rows=rows)

    readers = tuple(name for step in group for name in step.readers)
    return replace(group[0], readers=readers).map_reads(stretch).map_writes(stretch)


def _rename(view: View, names: dict[str, str]) -> View:
    return replace(view, name=names.get(view.name, view.name))
