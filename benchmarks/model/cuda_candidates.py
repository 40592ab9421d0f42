"""What runs in the latency benchmarks on a GPU: candidates recorded as CUDA graphs, each checked before it counts."""

from __future__ import annotations

import copy
import functools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.model.candidates import REMOVED, UNDER_MEAN, Candidates, Runner, some_mean
from benchmarks.model.masked import Masked
from benchmarks.model.removed import Removed
from vitsparse import Ablation, Circuit, SparseViT, edgewise_forward, sparsify
from vitsparse.compiler import dense_flops
from vitsparse.evaluation.baselines import CUDA_BASELINES
from vitsparse.evaluation.gpu import captured
from vitsparse.model.vit import ViT

BOUND = ("half", "lean", "found", "mixed", "edges50", "full")
"""Circuits with a target on a GPU."""
NEEDED = ("D eager", "D compile", "C half eager", "C half compile", "E compile")
RATIO, SLACK = 2.0, 1e-3
"""A candidate may err so many times as much as plain torch in its dtype does on its circuit, and a little more."""


@dataclass
class CudaCandidates(Candidates):
    """The runners of one model and batch on a GPU.

    Names: ``D`` and a runtime of ``CUDA_BASELINES``; ``C``, a circuit and a runtime; ``E eager`` and ``E compile``; a
    circuit, ``, `` and a backend of ours; a circuit, ``, mean, `` and a backend.
    """

    dtype: torch.dtype = torch.float16
    backends: tuple[str, ...] = ("cuda", "triton")
    device: str = "cuda"
    how: dict[str, str] = field(default_factory=dict)  # the way that our runners chose, of what was made
    exact: dict[str, tuple[Tensor, float]] = field(default_factory=dict)  # by circuit: logits, and the error allowed

    @functools.cached_property
    def inputs(self) -> Tensor:
        return self.images.to(self.device, self.dtype)

    @functools.cached_property
    def dense(self) -> ViT:
        return copy.deepcopy(self.model).to(self.device, self.dtype)

    @functools.cached_property
    def wide(self) -> ViT:
        return copy.deepcopy(self.model).to(self.device, torch.float64)

    def needed(self) -> Iterator[str]:
        """Without these a target cannot be judged."""
        yield from NEEDED
        yield from (f"{name}, {backend}" for backend in self.backends for name in BOUND if name in self.circuits)

    def wanted(self) -> Iterator[str]:
        """What else there is, the strongest rivals first."""
        yield from ("D autotune", "C half autotune", "D tensorrt", "C half tensorrt")
        yield from (f"{name}, {backend}" for backend in self.backends for name in self.circuits if name not in BOUND)
        yield from (f"{name}, mean, {backend}" for backend in self.backends for name in UNDER_MEAN
                    if name in self.circuits)
        yield from (f"C {name} {how}" for how in ("eager", "compile") for name in REMOVED
                    if name in self.circuits and name != "half")
        yield "E eager"

    def make(self, name: str) -> Runner:
        """The runner of a name: without arguments, to logits [B, classes]."""
        kind, _, which = name.partition(" ")
        if kind == "D":
            return CUDA_BASELINES[which](self.dense, self.inputs)
        if kind == "C":
            circuit, runtime = which.split()
            removed = Removed(copy.deepcopy(self.model), self.circuits[circuit]).eval()
            return CUDA_BASELINES[runtime](removed.to(self.device, self.dtype), self.inputs)
        if kind == "E":
            return self._masked(which)
        return self._sparse(name)

    def make_until(self, end: float) -> dict[str, Runner]:
        """All that are needed, then others while ``time.monotonic()`` is before ``end``. What fails is said, and is not
        there: whatever is wrong with one candidate, the others are still worth their numbers."""
        runners = {}
        needed = dict.fromkeys(self.needed())
        for name in dict.fromkeys([*needed, *self.wanted()]):
            if name not in needed and time.monotonic() > end:
                print(f"{name}: left out, no time left", file=sys.stderr)
                continue
            try:
                runners[name] = self.make(name)
            except Exception as error:
                text = (str(error).strip() or "no message").splitlines()
                print(f"{name}: left out, {type(error).__name__}: {' '.join(text[:4])}", file=sys.stderr)
        return runners

    def _masked(self, how: str) -> Runner:
        compiler = functools.partial(torch.compile, dynamic=False) if how == "compile" else lambda function: function
        masked = Masked(copy.deepcopy(self.model), self.circuits["edges50"], self.batch, compiler)
        return captured(masked.to(self.device, self.dtype), self.inputs)

    def _sparse(self, name: str) -> Runner:
        which, _, backend = name.rpartition(", ")
        sparse = self._compiled(which, backend)
        self.flops[name] = self.flops[which]
        runner = sparse.capture(self.inputs)
        self.how[name] = runner.how

        def run() -> Tensor:
            runner.replay()
            return runner.output

        return run

    def _compiled(self, which: str, backend: str) -> SparseViT:
        circuit, ablation = self._definition(which)
        sparse = sparsify(self.model, circuit, ablation=ablation, backend="torch").eval()
        self.flops[which] = sparse.plan.flops / dense_flops(self.model.config)  # whatever plans of a GPU compute twice
        sparse.backend = backend  # only asked for once it is on the device that the backend needs
        return sparse.to(self.device, self.dtype)

    def _definition(self, which: str) -> tuple[Circuit, Ablation]:
        name, _, kind = which.partition(", ")
        circuit = self.circuits[name]
        return circuit, some_mean(self.model, circuit) if kind else Ablation.zero(self.model, circuit.graph)

    def check(self, name: str, logits: Tensor) -> dict[str, Any]:
        """A row (``kind`` error): how far ``logits`` [B, classes] of a candidate are from the circuit it stands for.

        Of three images. Torch's own ops compute the definition, in float64, and say what error is allowed, in the
        candidates' dtype.
        """
        which, rows = circuit_of(name), sorted({0, self.batch // 2, self.batch - 1})
        if which not in self.exact:
            circuit, ablation = self._definition(which)
            wide = self.images[rows].to(self.device, torch.float64)
            exact = edgewise_forward(self.wide, wide, circuit.keep, graph=circuit.graph, ablation=ablation).cpu()
            plain = self._compiled(which, "torch")(self.inputs[rows])
            self.exact[which] = exact, RATIO * error(plain, exact) + SLACK
        exact, allowed = self.exact[which]
        found = error(logits[rows], exact)
        return {"kind": "error", "name": name, "batch": self.batch, "circuit": which, "error": significant(found),
                "target": significant(allowed), "met": found <= allowed}


def circuit_of(name: str) -> str:
    """What a candidate computes: a circuit, and ``, mean`` behind it if not under zero ablation."""
    kind, _, which = name.partition(" ")
    if kind == "C":
        which = which.split()[0]
        return "found_nodes" if which == "found" else which
    return {"D": "full", "E": "edges50"}.get(kind) or name.rpartition(", ")[0]


def error(found: Tensor, exact: Tensor) -> float:
    """max |found - exact| / max |exact|; 1e9 where anything found is no number, which JSON could not hold."""
    found = found.double().cpu()
    return float((found - exact).abs().max() / exact.abs().max()) if found.isfinite().all() else 1e9


def significant(value: float) -> float:
    """Three digits."""
    return float(f"{value:.3g}")
