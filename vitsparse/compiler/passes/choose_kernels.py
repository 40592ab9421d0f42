"""Pass 7: which steps run together. The sums of a stage become one step that reads each sender once, and the steps of a
stage are put in the order of what they need, so that those that can run at once stand side by side (``Plan.waves``)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from ..plan import Plan, conflict
from ..steps import Step, SumNorm, SumNorms


def choose_kernels(plan: Plan) -> Plan:
    """Bundle sums and order steps, stage by stage."""
    steps = tuple(step for stage in _stages(plan) for step in (*_bundles(stage), *_by_need(stage)))
    return plan.after("choose_kernels", steps=steps)


def _stages(plan: Plan) -> Iterator[list[Step]]:
    """Steps from one run of sums to the next."""
    stage: list[Step] = []
    for step in plan.steps:
        if isinstance(step, SumNorm) and stage and not isinstance(stage[-1], SumNorm):
            yield stage
            stage = []
        stage.append(step)
    yield stage


def _bundles(stage: list[Step]) -> Iterator[Step]:
    sums = [step for step in stage if isinstance(step, SumNorm)]
    for _, alike in groupby(sums, key=lambda step: (step.out.rows, step.out.cols)):
        parts = tuple(alike)
        yield SumNorms(parts) if len(parts) > 1 else parts[0]


def _by_need(stage: list[Step]) -> list[Step]:
    """The other steps, those that need fewer others first."""
    rest = [step for step in stage if not isinstance(step, SumNorm)]
    depth: list[int] = []
    for position, step in enumerate(rest):
        needed = [depth[other] for other in range(position) if conflict(step, rest[other])]
        depth.append(max(needed, default=-1) + 1)
    return [rest[position] for position in sorted(range(len(rest)), key=depth.__getitem__)]
