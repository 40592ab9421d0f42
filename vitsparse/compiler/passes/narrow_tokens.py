"""Pass 3: compute only the tokens that somebody reads.

The classifier reads the class token (or the patches), so the last block's MLP and queries need no other row. Liveness
of rows flows backward: every step but attention needs of its sources exactly the rows it is asked for.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..plan import Plan
from ..steps import Attention, Linear, Range, Step, SumNorm, View


def narrow_tokens(plan: Plan) -> Plan:
    """Restrict every value to the hull of the token rows that are read of it."""
    needed: dict[str, Range] = {plan.output.name: plan.output.rows}
    narrowed: list[Step] = []
    for step in reversed(plan.steps):
        asked = [needed[view.name] for view in step.writes if view.name in needed]
        if not asked:
            continue  # no row of it is read
        step = _narrow(step, _hull(asked))
        narrowed.append(step)
        for view in step.reads:
            known = needed.get(view.name, view.rows)
            needed[view.name] = known if known == view.rows else _hull((known, view.rows))
    return plan.after("narrow_tokens", steps=tuple(reversed(narrowed)))


def _hull(ranges: Collection[Range]) -> Range:
    return min(start for start, _ in ranges), max(stop for _, stop in ranges)


def _narrow(step: Step, rows: Range) -> Step:
    def cut(view: View) -> View:
        return view if view.rows == rows else replace(view, rows=rows)

    narrowed = step.map_writes(cut)
    if narrowed is step:  # then nothing less is read either
        return step
    if isinstance(narrowed, Attention):
        return replace(narrowed, q=cut(narrowed.q))
    return narrowed.map_reads(cut) if isinstance(narrowed, SumNorm | Linear) else narrowed
