"""What a circuit costs on a device, predicted from a table: microseconds of its compiled plan.

The plan of a circuit is made without any numbers (:mod:`.outline`) and counted (:mod:`.cost_features`); each count has
a price in microseconds, at least 0. The prices are measured once per device and number of threads (:mod:`.cost_table`)
and kept as JSON:

    {"format": "vitsparse.cost_model", "version": 2, "machine": {...}, "threads": 2,
     "caches": {"near": 1048576, "far": 33554432}, "microseconds": {"linear": {"products": 7e-06, ...}, ...}}

Discovery gets a :class:`PlanCost` as a value.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..circuit.circuit import Circuit
from ..circuit.files import read_json, write_json
from ..circuit.frozen import Frozen
from ..circuit.graph import Graph
from ..errors import InputError
from ..model.config import ViTConfig
from .cost_features import FEATURES, Caches, features_of, features_of_call
from .outline import outline
from .plan import Plan

FORMAT, VERSION = "vitsparse.cost_model", 2
REMEDY = "measure this machine: vitsparse bench --calibrate"


def default_file(threads: int) -> Path:
    """Where the table of this machine is kept: in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "vitsparse" / f"cost-{threads}-thread{'s' * (threads > 1)}.json"


@dataclass(frozen=True, eq=False)
class CostModel(Frozen):
    """The table of one device: ``prices[kind][size]`` in microseconds for each of :data:`FEATURES`.

    ``threads`` is how many of them a program had, ``caches`` how large the device's are, ``machine`` its facts.
    """

    prices: Mapping[str, Mapping[str, float]]
    threads: int
    caches: Caches
    machine: Mapping[str, Any]

    def __post_init__(self):
        self._freeze("prices")
        self._freeze("machine")

    def plan(self, plan: Plan, batch: int) -> float:
        """Microseconds of a call of a whole plan over ``batch`` images."""
        call = features_of_call(plan, batch, self.threads)
        return sum(self.prices[kind][size] * count
                   for features in (*features_of(plan, batch, self.threads, self.caches), call)
                   for (kind, size), count in features.items())

    def save(self, path: str | os.PathLike) -> None:
        """Write the table as JSON, atomically."""
        write_json(path, {"format": FORMAT, "version": VERSION, "machine": dict(self.machine), "threads": self.threads,
                          "caches": asdict(self.caches),
                          "microseconds": {kind: dict(prices) for kind, prices in self.prices.items()}})

    @classmethod
    def load(cls, path: str | os.PathLike) -> CostModel:
        """Read what :meth:`save` wrote; raises :class:`InputError` naming the file and the field."""
        content = read_json(path)
        fields = content if isinstance(content, dict) else {}
        if (fields.get("format"), fields.get("version")) != (FORMAT, VERSION):
            raise InputError("not a cost model of this version", where=path, expected=f"{FORMAT} version {VERSION}",
                             found=f"{fields.get('format')} version {fields.get('version')}", remedy=REMEDY)

        def refuse(field: str, **sides: Any) -> InputError:
            return InputError("the cost model is damaged", where=f"{path}{field}", **sides, remedy=REMEDY)

        names = ("machine", "threads", "caches", "microseconds")
        if set(fields) != {"format", "version", *names}:
            raise refuse("", expected=", ".join(names), found=sorted(fields))
        machine, threads, caches, prices = (fields[name] for name in names)
        if not isinstance(machine, dict) or not _is_count(threads):
            raise refuse(": machine, threads", expected="facts, and a number of threads >= 1", found=threads)
        for field, wrong in (*_wrong_caches(caches), *_wrong_prices(prices)):
            raise refuse(f": {field}", **wrong)
        return cls(prices, threads, Caches(**caches), machine)

    def __repr__(self) -> str:
        return f"CostModel({self.machine.get('cpu')}, {self.threads} threads)"


def _wrong_caches(caches: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if not (isinstance(caches, dict) and set(caches) == {"near", "far"} and all(map(_is_count, caches.values()))):
        yield "caches", {"expected": "bytes >= 1 of near and far", "found": caches}


def _wrong_prices(prices: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(prices, dict) or set(prices) != set(FEATURES):
        yield "microseconds", {"expected": sorted(FEATURES),
                               "found": sorted(prices) if isinstance(prices, dict) else prices}
        return
    for kind, of_kind in prices.items():
        if not isinstance(of_kind, dict) or set(of_kind) != set(FEATURES[kind]):
            yield f"microseconds: {kind}", {"expected": sorted(FEATURES[kind]), "found": of_kind}
            continue
        for size, value in of_kind.items():
            if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
                yield f"microseconds: {kind}: {size}", {"expected": "microseconds >= 0", "found": value}


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


class PlanCost:
    """Predicted latency of circuits of one ViT shape at one batch size: what discovery is given as ``cost``.

    ``config`` is the model's (:attr:`ViT.config`). Weights play no part, and neither do the ablation's values: each
    cut edge is taken to leave something to add. Raises :class:`InputError` for a batch that is no positive integer, or
    what is no configuration.
    """

    def __init__(self, table: CostModel, config: ViTConfig, *, batch: int = 1):
        if not isinstance(config, ViTConfig):
            raise InputError("latency is predicted from the shape of a model", where="PlanCost(config)",
                             expected="ViTConfig", found=type(config).__name__, remedy="of a ViT it is model.config")
        if not _is_count(batch):
            raise InputError("latency is predicted for a number of images", where="batch", expected="an integer >= 1",
                             found=batch)
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
