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
from .passes.fuse_blocks import fuse_attention, fuse_mlps, fuse_norms
from .passes.group_readers import group_readers
from .passes.join_products import join_products
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


def without_differences(plan: Plan) -> Plan:
    """Sums of senders alone: in half precision too few digits are left of a difference."""
    steps = tuple(replace(step, steady=False) if isinstance(step, SumNorm) else step for step in plan.steps)
    return plan.after("without_differences", steps=steps)


GPU_PASSES: tuple[Pass, ...] = (without_differences, *BACK_PASSES, join_products)
TARGETS: dict[str, tuple[Pass, ...]] = {
    "cpu": BACK_PASSES, "gpu": (*GPU_PASSES, fuse_attention), "gpu_mlp": (*GPU_PASSES, fuse_attention, fuse_mlps),
    "gpu_norm": (*GPU_PASSES, fuse_attention, fuse_norms), "gpu_apart": (*GPU_PASSES, fuse_norms)}
"""What a plan is made for. ``gpu_mlp``: many rows, MLPs in one kernel, a tile of rows a block. ``gpu_norm``: few rows,
products that spread over many blocks, which make the norms they need; ``gpu_apart``: the same with products and
attention apart, as the kernel that stays for a whole program needs them."""


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


def back(plan: Plan, target: str = "cpu") -> Plan:
    """The plan that runs: narrowed, grouped, widened, its sums and kernels chosen for one of :data:`TARGETS`."""
    for run_pass in TARGETS[target]:
        plan = run_pass(plan)
    return plan


def logits_plan(plan: Plan, parameters: Mapping[str, Tensor], target: str = "cpu") -> Plan:
    """The plan for logits from a front plan. Where nothing depends on the image it is one stored vector."""
    whole = append_head(plan)
    return fold_constants(whole, parameters) if plan.output.name in plan.constants else back(whole, target)
