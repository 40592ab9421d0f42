"""Checks of a plan that comes from a file, before anything of it is used.

What is stored is a front plan (``compile.front``): every value is written once, whole, for all tokens, and read whole.
The passes that follow rely on that. Whatever the rules below cannot see, a run on tensors without memory does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..backends import portable
from ..circuit.graph import Graph
from ..errors import InputError
from ..model.config import ViTConfig
from ..model.vit import ViT
from .compile import back, logits_plan
from .execute import Environment
from .plan import Plan
from .steps import ApplyPattern, Attention, Linear, Range, Step, SumNorm, View, length, total_length

NOT_A_PLAN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What half-sensible values make Python and torch raise."""


def check_loaded(plan: Plan, parameters: Mapping[str, Tensor], graph: Graph, *, plan_file: object,
                 weights_file: object) -> None:
    """Refuse what is not a whole front plan of a model of ``graph``'s shape with its tensors; names file and field."""
    try:
        _check_steps(plan, graph, plan_file)
        _check_tensors(plan, parameters, weights_file)
        _check_runs(plan, parameters)
    except InputError:
        raise
    except NOT_A_PLAN as error:
        raise InputError("the plan cannot be run", where=plan_file, found=f"{type(error).__name__}: {error}",
                         remedy="write it anew") from error


def _check_steps(plan: Plan, graph: Graph, where: object) -> None:
    config = plan.config
    if (config.depth, config.num_heads) != (graph.depth, graph.heads):
        raise InputError("the plan is for a model of another shape than the circuit", where=f"{where}: plan.config",
                         expected=f"depth {graph.depth}, {graph.heads} heads",
                         found=f"depth {config.depth}, {config.num_heads} heads")
    tokens = (0, config.num_tokens)
    written = {name: View(name, tokens, (0, value.shape[-1])) for name, value in plan.constants.items()}
    for number, step in enumerate(plan.steps):
        place = f"{where}: plan.steps[{number}]"
        for view in step.reads:
            if written.get(view.name) != view:
                raise InputError("a step reads what was never written", where=place, found=view,
                                 expected=written.get(view.name, "a value that an earlier step writes"))
        _check_fields(step, config, place)
        for view in step.writes:
            if view.name in written or view.rows != tokens or view.cols[0] != 0:
                raise InputError("a step must write a new value, whole", where=place, found=view,
                                 expected=f"a new name, rows {tokens}, columns from 0")
            written[view.name] = view
    if written.get(plan.output.name) != plan.output:
        raise InputError("the output is never written", where=f"{where}: plan.output", found=plan.output)


def _check_fields(step: Step, config: ViTConfig, place: str) -> None:
    """The fields of a step that a run on shapes alone would not notice."""
    if isinstance(step, Linear):
        ranges = [*step.weight.rows, *step.weight.cols, *(step.bias.rows if step.bias else ())]
        share = step.bias.scale if step.bias else 1.0
        if not _in_order(ranges) or not isinstance(share, float | int) or not math.isfinite(share):
            raise InputError("a product's weight or bias is damaged", where=place, found=step)
        if step.activation not in ("none", "gelu") or step.accumulate is not False:
            raise InputError("a product's activation is damaged", where=place, expected="none or gelu", found=step)
    if isinstance(step, Attention | ApplyPattern) and (type(step.heads) is not int or step.heads < 1
                                                       or step.heads * config.head_dim != step.out.width):
        raise InputError("the number of heads does not fit", where=place, found=f"{step.heads} heads in {step.out}",
                         expected=f"heads of width {config.head_dim}")
    if isinstance(step, SumNorm) and (not step.readers or (step.total is None) == (step.normed is None)):
        raise InputError("a sum must have a reader and one result", where=place, found=step)
    if isinstance(step, SumNorm) and not all(type(layer) is int and 0 <= layer < config.depth for layer in step.biases):
        raise InputError("a sum takes the bias of a layer that is not there", where=place, found=step.biases,
                         expected=f"layers 0 to {config.depth - 1}")


def _in_order(ranges: Iterable[Range]) -> bool:
    return all(type(start) is type(stop) is int and 0 <= start < stop for start, stop in ranges)


def _check_tensors(plan: Plan, parameters: Mapping[str, Tensor], where: object) -> None:
    missing, extra = set(plan.parameters) - set(parameters), set(parameters) - set(plan.parameters)
    if missing or extra:
        raise InputError("the weights are not those of the plan", where=where,
                         expected=f"missing: {sorted(missing)[:5]}", found=f"unexpected: {sorted(extra)[:5]}")
    dense = {key: tuple(value.shape) for key, value in
             ViT(**plan.config.to_dict(), device="meta").state_dict().items()}
    for key, slices in plan.parameters.items():
        shape = dense.get(key, ())
        whole = len(slices) <= len(shape) and all(map(_fit, slices, shape))
        if not whole:
            raise InputError("the plan slices a parameter where it has nothing", where=f"{where}: {key}",
                             expected=f"ranges inside {list(shape)}", found=slices)
        expected = (*map(total_length, slices), *shape[len(slices):])
        _check_tensor(parameters[key], expected, f"{where}: {key}")
    tokens = plan.config.num_tokens
    for name, value in plan.constants.items():
        rows = (tokens,) if value.ndim == 2 else (value.shape[0], tokens)
        _check_tensor(value, (*rows, value.shape[-1]), f"{where}: {name}")


def _fit(ranges: tuple[Range, ...], size: int) -> bool:
    """Whether ranges ascend, do not overlap and end by ``size``."""
    ends = [end for span in ranges for end in span]
    return bool(ranges) and _in_order(ranges) and ends == sorted(ends) and ends[-1] <= size


def _check_tensor(tensor: Tensor, shape: tuple[int, ...], where: str) -> None:
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        raise InputError("a tensor has the wrong shape", where=where, expected=f"float {list(shape)}",
                         found=f"{tensor.dtype} {list(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise InputError("a tensor is not finite", where=where, expected="finite numbers", found="NaN or infinity")


class _ShapesOnly(Environment):
    """Values without memory, each exactly of the size that its view says."""

    def write(self, view: View, value: Tensor, *, accumulate: bool = False) -> None:
        if (length(view.rows), view.width) != tuple(value.shape[1:]):
            raise ValueError(f"{view} is given values of shape {list(value.shape[1:])}")
        super().write(view, value, accumulate=accumulate)


def _check_runs(plan: Plan, parameters: Mapping[str, Tensor]) -> None:
    """Run both plans that follow from a front plan on tensors without memory; no shape that disagrees gets through."""
    config = plan.config
    images = torch.empty(2, config.in_chans, config.img_size, config.img_size, device="meta")
    shapes = {key: value.to("meta", torch.float32) for key, value in parameters.items()}
    for final in (back(plan), logits_plan(plan, parameters)):
        constants = {name: value.to("meta", torch.float32) for name, value in final.constants.items()}
        environment = _ShapesOnly(final, shapes, constants)
        for step in final.steps:
            environment.run(step, images, portable)
