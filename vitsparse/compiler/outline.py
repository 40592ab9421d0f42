"""The steps that a circuit compiles to, without any numbers: what its latency is predicted from."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..circuit.circuit import Circuit
from ..model.config import ViTConfig
from .compile import back
from .passes.drop_dead import drop_dead
from .plan import Plan
from .steps import ApplyPattern, Attention, Embed, SumNorm
from .translate import append_head, translate


def outline(config: ViTConfig, circuit: Circuit) -> Plan:
    """The steps of ``circuit``, with constants that have names but no values: which numbers a constant holds decides
    no step, only whether two of them are the same."""
    plan = drop_dead(translate(config, circuit, torch.ones(len(circuit.graph.senders), 1, 1)))
    plan = drop_dead(_fold_names(plan))
    if plan.output.name in plan.constants:
        return plan
    return back(append_head(plan))


def _fold_names(plan: Plan) -> Plan:
    """What fold_constants does to the steps. Offsets of the same constants are the same constant."""
    constants, steps, value = dict(plan.constants), [], torch.zeros(1, 1)
    for step in plan.steps:
        fixed = [view.name for view in step.reads if view.name in constants]
        if fixed and len(fixed) == len(step.reads) and not isinstance(step, Embed):
            constants |= dict.fromkeys((view.name for view in step.writes), value)
            continue
        if isinstance(step, SumNorm) and fixed:
            offset = "+".join(sorted(fixed))
            constants[offset] = value
            step = replace(step, offset=offset, senders=tuple(v for v in step.senders if v.name not in constants))
        elif isinstance(step, Attention) and {step.q.name, step.k.name} <= set(fixed):
            pattern = f"pattern.{step.out.name}"
            constants[pattern] = value
            step = ApplyPattern(pattern, step.v, step.out, step.heads)
        steps.append(step)
    return plan.after("fold_constants", steps=tuple(steps), constants=constants)
