"""From a circuit to a plan: the passes in order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor

from ..circuit.circuit import Circuit
from ..circuit.operator import OPERATOR
from ..model.config import ViTConfig
from .operators import translate_operators
from .passes.choose_kernels import choose_kernels
from .passes.choose_sums import choose_sums
from .passes.drop_dead import drop_dead
from .passes.fold_constants import fold_constants
from .passes.group_readers import group_readers
from .passes.narrow_tokens import narrow_tokens
from .passes.slice_weights import slice_weights
from .passes.widen_products import widen_products
from .plan import Plan
from .steps import SumNorm
from .translate import append_head, translate

Pass = Callable[[Plan], Plan]


def front_passes(parameters: Mapping[str, Tensor]) -> tuple[Pass, ...]:
    """The passes that need the dense model's weights: what they leave is stored in files."""
    return drop_dead, partial(fold_constants, parameters=parameters), drop_dead, slice_weights


# Slicing comes before these because the plan for logits and the one for features share their parameters.
BACK_PASSES: tuple[Pass, ...] = (narrow_tokens, group_readers, widen_products, choose_sums, choose_kernels)


def front(config: ViTConfig, circuit: Circuit, ablation_values: Tensor, parameters: Mapping[str, Tensor],
          unsteady: Collection[str] = ()) -> Plan:
    """The plan of what is left of the model in front of its head, every token and node still on its own.

    ``unsteady`` names readers whose input must not be made as a difference.
    """
    plan = (translate_operators(config, circuit, parameters) if circuit.graph.granularity == OPERATOR
            else translate(config, circuit, ablation_values))
    plan = replace(plan, steps=tuple(replace(step, steady=False) if isinstance(step, SumNorm)
                                     and not set(step.readers).isdisjoint(unsteady) else step for step in plan.steps))
    for run_pass in front_passes(parameters):
        plan = run_pass(plan)
    return plan


def back(plan: Plan) -> Plan:
    """The plan that runs: narrowed, grouped, widened, its sums and kernels chosen."""
    for run_pass in BACK_PASSES:
        plan = run_pass(plan)
    return plan


def logits_plan(plan: Plan, parameters: Mapping[str, Tensor]) -> Plan:
    """The plan for logits from a front plan. Where nothing depends on the image it is one stored vector."""
    whole = append_head(plan)
    return fold_constants(whole, parameters) if plan.output.name in plan.constants else back(whole)
