"""Pass 3: compute only the tokens that somebody reads.

The classifier reads the class token (or the patches), so the last block's MLP and queries need no other row. Liveness
of rows flows backward: every step but attention needs of its sources exactly the rows it is asked for.
"""

from __future__ import annotations

from dataclasses import replace

from ..plan import Plan
from ..steps import Attention, Linear, Range, Step, SumNorm, View, hull


def narrow_tokens(plan: Plan) -> Plan:
    """Restrict every value to the hull of the token rows that are read of it."""
    needed: dict[str, View] = {plan.output.name: plan.output}
    narrowed: list[Step] = []
    for step in reversed(plan.steps):
        asked = [needed[view.name].rows for view in step.writes if view.name in needed]
        if not asked:
            continue  # no row of it is read
        rows = (min(start for start, _ in asked), max(stop for _, stop in asked))
        step = _narrow(step, rows)
        narrowed.append(step)
        for view in step.reads:
            needed[view.name] = hull(needed.get(view.name, view), view)
    return plan.after("narrow_tokens", steps=tuple(reversed(narrowed)))


def _narrow(step: Step, rows: Range) -> Step:
    def cut(view: View) -> View:
        return replace(view, rows=rows)

    step = step.map_writes(cut)
    if isinstance(step, Attention):
        return replace(step, q=cut(step.q))
    return step.map_reads(cut) if isinstance(step, SumNorm | Linear) else step
