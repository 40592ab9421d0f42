"""What a circuit costs on a device, predicted from a table: microseconds of its compiled plan.

The plan of a circuit is made without any numbers, and the times of its steps are added up. The time of a step is linear
in a few sizes that follow from its shape (:data:`FEATURES`), with coefficients >= 0 that :mod:`.cost_table` measures
once per device and batch size, and that are kept as JSON:

    {"format": "vitsparse.cost_model", "version": 1, "machine": {...}, "threads": 2,
     "batches": {"1": {"linear": {"step": 0.9, "products": 7e-06, ...}, ...}}}

Discovery gets a :class:`PlanCost` as a value.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch

from ..circuit.circuit import Circuit
from ..circuit.files import read_json, write_json
from ..circuit.frozen import Frozen
from ..circuit.graph import Graph
from ..errors import InputError
from ..model.config import ViTConfig
from .compile import back
from .passes.drop_dead import drop_dead
from .plan import Plan
from .steps import ApplyPattern, Attention, Embed, Linear, MeanRows, Step, SumNorm, length
from .translate import append_head, translate

FORMAT, VERSION = "vitsparse.cost_model", 1
WORTH_A_THREAD = 2e6
"""Work of a step from which the native executor shares it out over its threads (kernels/cpu/cost.h)."""
VECTOR = 16  # outputs of a product that are made at once


def _embed(step: Embed) -> dict[str, float]:
    return {"products": step.flops / 2, "values": step.out.size, "work": step.flops}


def _sum_norm(step: SumNorm) -> dict[str, float]:
    terms = len(step.senders) + (step.offset is not None or bool(step.biases))
    return {"read": terms * step.out.size, "written": len(step.writes) * step.out.size,
            "work": 16 * step.out.size * (len(step.senders) + 2)}


def _linear(step: Linear) -> dict[str, float]:
    rows, outputs = length(step.out.rows), math.ceil(step.out.width / VECTOR) * VECTOR
    return {"products": rows * step.source.width * outputs, "weights": step.source.width * outputs,
            "values": step.bytes / 4, "gelus": step.out.size * (step.activation == "gelu"), "work": step.flops}


def _mixing(step: Attention | ApplyPattern) -> dict[str, float]:
    keys = length(step.v.rows)
    scores = step.heads * length(step.out.rows) * keys
    softmax = 60 * scores * isinstance(step, Attention)
    return {"products": step.flops / 2, "scores": scores, "values": step.bytes / 4, "work": step.flops + softmax}


def _mean_rows(step: MeanRows) -> dict[str, float]:
    return {"values": step.source.size, "work": 0}


FEATURES: dict[str, tuple[type[Step], tuple[str, ...], Callable[[Any], dict[str, float]]]] = {
    "embed": (Embed, ("step", "shared", "products", "values"), _embed),
    "sum_norm": (SumNorm, ("step", "shared", "read", "written"), _sum_norm),
    "linear": (Linear, ("step", "shared", "products", "weights", "values", "gelus"), _linear),
    "attention": (Attention, ("step", "shared", "products", "scores", "values"), _mixing),
    "apply_pattern": (ApplyPattern, ("step", "shared", "products", "scores", "values"), _mixing),
    "mean_rows": (MeanRows, ("step", "values"), _mean_rows),
}
"""For each kind of step: its sizes per image, in numbers (not bytes). ``step`` counts 1, ``shared`` 1 where threads
share the work (and then each has a part of every other size)."""
KIND_OF = {step: kind for kind, (step, _, _) in FEATURES.items()}


def features_of(step: Step, batch: int, threads: int) -> dict[str, float]:
    """The sizes of ``step`` that its time depends on; see :data:`FEATURES`."""
    _, names, sizes_of = FEATURES[KIND_OF[type(step)]]
    sizes = sizes_of(step)
    work = sizes.pop("work") * batch
    share = threads if work >= WORTH_A_THREAD and not splits_images(batch, threads) else 1
    return {"step": 1.0, "shared": float(share > 1)} | {name: size / share for name, size in sizes.items()
                                                          if name in names}


def splits_images(batch: int, threads: int) -> bool:
    """Whether the native executor gives each thread images of its own; else threads share the larger steps."""
    return batch >= 2 * threads or batch % threads == 0


@dataclass(frozen=True, eq=False)
class CostModel(Frozen):
    """The table of one device: ``batches[batch][kind][size]`` are microseconds per unit of a step's size.

    ``machine`` are the facts of the machine it was measured on, ``threads`` how many of them a program had.
    """

    batches: Mapping[int, Mapping[str, Mapping[str, float]]]
    threads: int
    machine: Mapping[str, Any]

    def __post_init__(self):
        self._freeze("batches")
        self._freeze("machine")

    def step(self, step: Step, batch: int) -> float:
        """Microseconds of one step over ``batch`` images."""
        coefficients = self.batches[batch][KIND_OF[type(step)]]
        features = features_of(step, batch, self.threads)
        return sum(coefficients[name] * features[name] for name in coefficients)

    def plan(self, plan: Plan, batch: int) -> float:
        """Microseconds of a whole plan over ``batch`` images."""
        return self.batches[batch]["program"]["step"] + sum(self.step(step, batch) for step in plan.steps)

    def save(self, path: str | os.PathLike) -> None:
        """Write the table as JSON, atomically."""
        write_json(path, {"format": FORMAT, "version": VERSION, "machine": dict(self.machine), "threads": self.threads,
                          "batches": {str(batch): table for batch, table in self.batches.items()}})

    @classmethod
    def load(cls, path: str | os.PathLike) -> CostModel:
        """Read what :meth:`save` wrote; raises :class:`InputError` naming the file and the field."""
        content = read_json(path)
        fields = content if isinstance(content, dict) else {}
        if (fields.get("format"), fields.get("version")) != (FORMAT, VERSION):
            raise InputError("not a cost model of this version", where=path, expected=f"{FORMAT} version {VERSION}",
                             found=f"{fields.get('format')} version {fields.get('version')}",
                             remedy="measure this device: python -m benchmarks.cost_table FILE")
        refuse = partial(InputError, "the cost model is damaged", remedy="measure it anew")
        if set(fields) != {"format", "version", "machine", "threads", "batches"}:
            raise refuse(where=path, expected="machine, threads and batches", found=sorted(fields))
        if not isinstance(fields["machine"], dict) or not _is_count(fields["threads"]):
            raise refuse(where=f"{path}: machine, threads", expected="facts, and a number of threads >= 1")
        tables = fields["batches"]
        if not isinstance(tables, dict) or not tables or not all(map(_is_batch, tables)):
            raise refuse(where=f"{path}: batches", expected="a table for each batch size", found=type(tables).__name__)
        for batch, table in tables.items():
            _check_table(table, lambda where, batch=batch, **sides: refuse(where=f"{path}: {batch}: {where}", **sides))
        return cls({int(batch): table for batch, table in tables.items()}, fields["threads"], fields["machine"])

    def __repr__(self) -> str:
        return f"CostModel({self.machine.get('cpu')}, {self.threads} threads, batches {sorted(self.batches)})"


def _check_table(table: Any, refuse: Callable[..., InputError]) -> None:
    expected = {kind: set(names) for kind, (_, names, _) in FEATURES.items()} | {"program": {"step"}}
    if not isinstance(table, dict) or set(table) != set(expected):
        raise refuse("kinds", expected=sorted(expected), found=sorted(table) if isinstance(table, dict) else table)
    for kind, coefficients in table.items():
        if not isinstance(coefficients, dict) or set(coefficients) != expected[kind]:
            raise refuse(kind, expected=sorted(expected[kind]), found=coefficients)
        for name, value in coefficients.items():
            if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
                raise refuse(f"{kind}: {name}", expected="microseconds >= 0", found=value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_batch(text: str) -> bool:
    return text.isdecimal() and text == str(int(text)) and int(text) >= 1


class PlanCost:
    """Predicted latency of circuits of one ViT shape at one batch size: what discovery is given as ``cost``.

    ``config`` is the model's (:attr:`ViT.config`). Weights play no part, and neither do the ablation's values: each
    cut edge is taken to leave something to add. Raises :class:`InputError` for a batch size that was not measured, or
    what is no configuration.
    """

    def __init__(self, table: CostModel, config: ViTConfig, *, batch: int = 1):
        if not isinstance(config, ViTConfig):
            raise InputError("latency is predicted from the shape of a model", where="PlanCost(config)",
                             expected="ViTConfig", found=type(config).__name__, remedy="of a ViT it is model.config")
        if batch not in table.batches:
            raise InputError("the cost model was not measured at this batch size", where="batch", found=batch,
                             expected=f"one of {sorted(table.batches)}")
        self.table, self.config, self.batch = table, config, batch
        self._known: dict[tuple[Graph, bytes], float] = {}

    def latency(self, circuit: Circuit) -> float:
        """Microseconds of the compiled plan of ``circuit`` over one batch."""
        key = circuit.graph, circuit.keep.tobytes()
        if key not in self._known:
            self._known[key] = self.table.plan(outline(self.config, circuit), self.batch)
        return self._known[key]

    @cached_property
    def dense(self) -> float:
        """Microseconds of the plan that keeps every edge."""
        return self.latency(Circuit.full(Graph(self.config.depth, self.config.num_heads)))

    def describe(self) -> dict[str, Any]:
        """Plain JSON values that tell one cost from another."""
        return {"machine": self.table.machine.get("cpu"), "threads": self.table.threads, "batch": self.batch,
                "dense_us": self.dense}


def outline(config: ViTConfig, circuit: Circuit) -> Plan:
    """The steps that ``circuit`` compiles to, with constants that have names but no values: which numbers a constant
    holds decides no step, only whether two of them are the same."""
    plan = drop_dead(translate(config, circuit, torch.ones(len(circuit.graph.senders), 1, 1)))
    plan = drop_dead(_fold_names(plan))
    if plan.output.name in plan.constants:
        return plan
    return back(append_head(plan))


def _fold_names(plan: Plan) -> Plan:
    """What fold_constants does to the steps. Offsets of the same constants are the same constant."""
    constants, steps = dict(plan.constants), []
    for step in plan.steps:
        fixed = [view.name for view in step.reads if view.name in constants]
        if not isinstance(step, Embed) and len(fixed) == len(step.reads):
            constants |= dict.fromkeys((view.name for view in step.writes), torch.zeros(1, 1))
            continue
        if isinstance(step, SumNorm) and fixed:
            offset = "+".join(sorted(fixed))
            constants[offset] = torch.zeros(1, 1)
            step = replace(step, offset=offset, senders=tuple(v for v in step.senders if v.name not in constants))
        elif isinstance(step, Attention) and {step.q.name, step.k.name} <= set(fixed):
            pattern = f"pattern.{step.out.name}"
            constants[pattern] = torch.zeros(1, 1)
            step = ApplyPattern(pattern, step.v, step.out, step.heads)
        steps.append(step)
    return plan.after("fold_constants", steps=tuple(steps), constants=constants)
