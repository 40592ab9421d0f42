"""Pass 5: a sum that contains an earlier sum starts from it instead of adding all its senders again.

In the dense model this is the residual stream itself: each reader adds what was written since the last one. Sums are
only ever extended, never corrected by subtraction, so nothing cancels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..plan import Plan
from ..steps import Step, SumNorm, View


def share_sums(plan: Plan) -> Plan:
    """Rewrite each sum over the largest earlier sum that it contains (of at least two terms)."""
    steps: list[Step] = list(plan.steps)
    constants = dict(plan.constants)
    earlier: list[tuple[int, SumNorm]] = []  # position, the step as it was before any rewriting
    for position, step in enumerate(steps):
        if not isinstance(step, SumNorm):
            continue
        base = max((entry for entry in earlier if _contains(step, entry[1])), default=None,
                   key=lambda entry: len(entry[1].senders) + len(entry[1].biases))
        earlier.append((position, step))
        if base is not None:
            steps[base[0]], total = _with_total(steps[base[0]])
            steps[position] = _extend(step, base[1], total, constants)
    return plan.after("share_sums", steps=tuple(steps), constants=constants)


def _terms(step: SumNorm) -> set[str]:
    return {view.name for view in step.senders}


def _contains(step: SumNorm, base: SumNorm) -> bool:
    covers = base.out.rows[0] <= step.out.rows[0] and step.out.rows[1] <= base.out.rows[1]
    worthwhile = len(base.senders) + (base.offset is not None) >= 2
    return covers and worthwhile and _terms(base) <= _terms(step) and set(base.biases) <= set(step.biases)


def _with_total(step: SumNorm) -> tuple[SumNorm, View]:
    """The step made to store its sum too, and the view of it."""
    total = step.total or replace(step.out, name=f"r.{step.out.name.removeprefix('n.')}")
    return replace(step, total=total), total


def _extend(step: SumNorm, base: SumNorm, total: View, constants: dict[str, Tensor]) -> SumNorm:
    rest = tuple(view for view in step.senders if view.name not in _terms(base))
    biases = tuple(layer for layer in step.biases if layer not in base.biases)
    offset = _difference(step, base, constants)
    return replace(step, senders=(replace(total, rows=step.out.rows), *rest), biases=biases, offset=offset)


def _difference(step: SumNorm, base: SumNorm, constants: Mapping[str, Tensor] | dict[str, Tensor]) -> str | None:
    """The constant that is left to add, or None when both offsets are the same."""
    if step.offset == base.offset:
        return None
    ours = constants[step.offset] if step.offset else 0
    name = f"{step.offset or 'none'}-{base.offset or 'none'}"
    constants[name] = ours - (constants[base.offset] if base.offset else 0)  # type: ignore[index]
    return name
