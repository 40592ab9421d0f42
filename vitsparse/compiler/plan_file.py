"""Plans as JSON: every field by name, checked on the way in. The tensors behind the names live in a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..model.config import ViTConfig
from .plan import ApplyPattern, Attention, Bias, Embed, Linear, MeanRows, Plan, Step, SumNorm, View, Weight

FORMAT, VERSION = "vitsparse.plan", 1
_KINDS: dict[str, type[Step]] = {kind.__name__: kind for kind in
                                 (Embed, SumNorm, Linear, Attention, ApplyPattern, MeanRows)}
_PARTS = {"View": View, "Weight": Weight, "Bias": Bias}
MAX_STEPS = 10**6


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """Plain values, ready for JSON; constants appear by name only."""
    return {"format": FORMAT, "version": VERSION, "config": plan.config.to_dict(), "passes": list(plan.passes),
            "output": _plain(plan.output), "constants": sorted(plan.constants), "steps": [_plain(s) for s in plan.steps],
            "parameters": {key: _plain(slices) for key, slices in plan.parameters.items()}}


def plan_from_dict(data: Any, constants: Mapping[str, Tensor], *, where: object) -> Plan:
    """The plan described by ``data`` over ``constants``; :class:`InputError` naming the field that is wrong."""
    expected = {"format", "version", "config", "passes", "output", "constants", "steps", "parameters"}
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
        found = {key: data.get(key) for key in ("format", "version")} if isinstance(data, dict) else type(data).__name__
        raise InputError("not a plan of this version", where=where, expected=f"{FORMAT} version {VERSION}", found=found)
    if set(data) != expected or not isinstance(data["steps"], list) or len(data["steps"]) > MAX_STEPS:
        raise InputError("the plan is damaged", where=where, expected=sorted(expected), found=sorted(data))
    if sorted(constants) != data["constants"]:
        raise InputError("the plan's constants are not the ones in the weights file", where=where,
                         expected=data["constants"], found=sorted(constants))
    try:
        plan = Plan(ViTConfig.from_dict(data["config"], where=where), tuple(map(_step, data["steps"])), constants,
                    _part(data["output"]), {key: _tuples(value) for key, value in data["parameters"].items()},
                    tuple(data["passes"]))
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError("the plan is damaged", where=where, found=repr(error), remedy="write it anew") from error
    _check(plan, where)
    return plan


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Step | View | Weight | Bias):
        return {"kind": type(value).__name__, **{f.name: _plain(getattr(value, f.name)) for f in fields(value)}}
    return value


def _step(data: dict[str, Any]) -> Step:
    return _KINDS[data["kind"]](**{key: _part(value) for key, value in data.items() if key != "kind"})


def _part(value: Any) -> Any:
    if isinstance(value, dict):
        return _PARTS[value["kind"]](**{key: _tuples(entry) for key, entry in value.items() if key != "kind"})
    if isinstance(value, list):
        return tuple(map(_part, value))
    return value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check(plan: Plan, where: object) -> None:
    """Every view lies inside what was written before it, or inside a constant."""
    tokens = (0, plan.config.num_tokens)
    written: dict[str, View] = {name: View(name, tokens, (0, value.shape[-1])) for name, value in plan.constants.items()}
    for number, step in enumerate(plan.steps):
        for view in step.reads:
            if view.name not in written or not _inside(view, written[view.name]):
                raise InputError("a step reads what was never written", where=f"{where}: step {number}",
                                 expected=written.get(view.name, "a value written by an earlier step"), found=view)
        for view in step.writes:
            written[view.name] = view
    if plan.output.name not in written or not _inside(plan.output, written[plan.output.name]):
        raise InputError("the output is never written", where=f"{where}: output", found=plan.output)


def _inside(view: View, whole: View) -> bool:
    return all(outer[0] <= inner[0] < inner[1] <= outer[1]
               for inner, outer in ((view.rows, whole.rows), (view.cols, whole.cols)))
