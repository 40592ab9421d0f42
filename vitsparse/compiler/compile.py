"""From a circuit to a plan: the passes in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from ..circuit.circuit import Circuit
from ..model.config import ViTConfig
from .passes.drop_dead import drop_dead
from .passes.fold_constants import fold_constants
from .passes.group_readers import group_readers
from .passes.narrow_tokens import narrow_tokens
from .passes.share_sums import share_sums
from .passes.slice_weights import slice_weights
from .passes.widen_products import widen_products
from .plan import Plan
from .translate import translate

Pass = Callable[[Plan], Plan]


def front_passes(parameters: Mapping[str, Tensor]) -> tuple[Pass, ...]:
    """The passes that need the dense model's weights: what they leave is stored in files."""
    return drop_dead, partial(fold_constants, parameters=parameters), drop_dead, slice_weights


# Slicing comes before them because the plan for logits and the one for features then share their parameters.
BACK_PASSES: tuple[Pass, ...] = (narrow_tokens, group_readers, widen_products, share_sums)


def front(config: ViTConfig, circuit: Circuit, ablation_values: Tensor, parameters: Mapping[str, Tensor], *,
          features: bool = False) -> Plan:
    """The plan of what is left of the model, every token and node on its own."""
    plan = translate(config, circuit, ablation_values, features=features)
    for run_pass in front_passes(parameters):
        plan = run_pass(plan)
    return plan


def back(plan: Plan) -> Plan:
    """The plan that runs: narrowed, grouped, widened, with shared sums."""
    for run_pass in BACK_PASSES:
        plan = run_pass(plan)
    return plan
