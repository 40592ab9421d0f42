"""Plans as JSON, every field by name. The tensors behind the names live in a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..model.config import ViTConfig
from .plan import Plan
from .plan_check import NOT_A_PLAN
from .steps import ApplyPattern, Attention, Bias, Embed, Linear, MeanRows, Step, SumNorm, View, Weight

FORMAT, VERSION = "vitsparse.plan", 1
_KINDS: dict[str, type[Step]] = {kind.__name__: kind for kind in
                                 (Embed, SumNorm, Linear, Attention, ApplyPattern, MeanRows)}
_PARTS = {"View": View, "Weight": Weight, "Bias": Bias}
MAX_STEPS = 10**5


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """Plain values, ready for JSON; constants appear by name only."""
    return {"format": FORMAT, "version": VERSION, "config": plan.config.to_dict(), "passes": list(plan.passes),
            "output": _plain(plan.output), "constants": sorted(plan.constants),
            "steps": [_plain(step) for step in plan.steps],
            "parameters": {key: _plain(slices) for key, slices in plan.parameters.items()}}


def plan_from_dict(data: Any, constants: Mapping[str, Tensor], *, where: object) -> Plan:
    """The plan described by ``data`` over ``constants``; :class:`InputError` naming the field that is wrong."""
    expected = {"format", "version", "config", "passes", "output", "constants", "steps", "parameters"}
    found = (data.get("format"), data.get("version")) if isinstance(data, dict) else type(data).__name__
    if found != (FORMAT, VERSION):
        raise InputError("not a plan of this version", where=where, expected=f"{FORMAT} version {VERSION}", found=found)
    if set(data) != expected or not isinstance(data["steps"], list) or len(data["steps"]) > MAX_STEPS:
        raise InputError("the plan is damaged", where=where, expected=sorted(expected), found=sorted(data))
    if sorted(constants) != data["constants"]:
        raise InputError("the plan's constants are not the ones in the weights file", where=where,
                         expected=data["constants"], found=sorted(constants))
    try:
        return Plan(ViTConfig.from_dict(data["config"], where=where), tuple(map(_step, data["steps"])), constants,
                    _part(data["output"]), {key: _tuples(value) for key, value in data["parameters"].items()},
                    tuple(data["passes"]))
    except InputError:
        raise
    except NOT_A_PLAN as error:
        raise InputError("the plan is damaged", where=where, found=repr(error), remedy="write it anew") from error


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
