"""Pass 1: a step whose results nobody reads, directly or through others, is not computed."""

from __future__ import annotations

from ..plan import Plan
from ..steps import Step


def drop_dead(plan: Plan) -> Plan:
    """Keep the steps on some path to the output."""
    needed = {plan.output.name}
    kept: list[Step] = []
    for step in reversed(plan.steps):
        if any(view.name in needed for view in step.writes):
            kept.append(step)
            needed.update(view.name for view in step.reads)
    return plan.after("drop_dead", steps=tuple(reversed(kept)))
