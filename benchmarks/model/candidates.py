"""What runs in the latency benchmarks: a model's circuits, and the baselines of the same model, by name."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.model.circuits import named_circuits
from benchmarks.model.masked import CHUNK, Masked
from benchmarks.model.removed import Removed
from vitsparse import Ablation, Circuit, InputError, create_model, sparsify
from vitsparse.compiler import dense_flops
from vitsparse.evaluation.ablation import fingerprint
from vitsparse.evaluation.baselines import BASELINES, openvino
from vitsparse.model.vit import ViT

Runner = Callable[[], object]

DENSE = tuple(f"D {name}" for name in BASELINES)
REMOVED = ("half", "third", "lean", "found")
"""Circuits whose nodes are also removed physically. (``mixed`` has the nodes of ``half``.)"""
UNDER_MEAN = ("half", "mixed", "found", "found_nodes")
"""Circuits also compiled with constants in the place of cut edges, as under mean ablation; elsewhere these are zero."""


@dataclass
class Candidates:
    """The runners of one model (a name of ``create_model``) and batch, each made on first use.

    Names: ``D`` and a runtime, the dense model; ``C`` and a circuit, its nodes removed, under OpenVINO; ``E eager`` and
    ``E compile``, *edges50* as a mask; a circuit, compiled by us; a circuit and ``, mean``.
    """

    model_name: str
    batch: int
    flops: dict[str, float] = field(default_factory=dict)  # share of the dense FLOPs, of what was made

    @functools.cached_property
    def model(self) -> ViT:
        return create_model(self.model_name).eval()

    @functools.cached_property
    def images(self) -> Tensor:
        config = self.model.config
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, config.in_chans, config.img_size, config.img_size, generator=generator)

    @functools.cached_property
    def circuits(self) -> Mapping[str, Circuit]:
        return named_circuits(self.model.depth, self.model.num_heads)

    def names(self) -> Iterator[str]:
        """All that this model has, whether or not its runtime is installed."""
        yield from DENSE
        yield from (f"C {name}" for name in REMOVED if name in self.circuits)
        yield from ("E eager", "E compile", *self.circuits)
        yield from (f"{name}, mean" for name in UNDER_MEAN if name in self.circuits)

    def make(self, name: str) -> Runner:
        """The runner of a name. Raises :class:`InputError` where its runtime is missing."""
        kind, _, which = name.partition(" ")
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "D":
                return BASELINES[which](self.model, self.images)
            if kind == "C":
                return openvino(Removed(self.model, self.circuits[which]).eval(), self.images)
            if kind == "E":
                return self._masked(which)
            return self._sparse(name)

    def make_all(self, names: Collection[str]) -> dict[str, Runner]:
        """Runners by name; what cannot be made here is left out, and said."""
        runners = {}
        for name in names:
            try:
                runners[name] = self.make(name)
            except InputError as error:
                print(f"{name}: left out, {error.what}", file=sys.stderr)
        return runners

    def _masked(self, how: str) -> Runner:
        compiler = functools.partial(torch.compile, dynamic=False) if how == "compile" else lambda function: function
        masked = Masked(self.model, self.circuits["edges50"], min(self.batch, CHUNK), compiler)
        run = functools.partial(masked, self.images)
        try:
            run()
        except RuntimeError as error:
            raise InputError("torch.compile does not work here", where="baseline E") from error
        return run

    def _sparse(self, name: str) -> Runner:
        circuit_name, _, kind = name.partition(", ")
        circuit = self.circuits[circuit_name]
        ablation = some_mean(self.model, circuit) if kind else Ablation.zero(self.model, circuit.graph)
        sparse = sparsify(self.model, circuit, ablation=ablation).eval()
        self.flops[name] = sparse.plan.flops / dense_flops(self.model.config)
        return functools.partial(sparse, self.images)


def threads_of(runner: Runner) -> int:
    """How many threads a runner may use, asked of its runtime: none of them follows torch's settings by itself."""
    owner = getattr(runner, "func", runner)
    if hasattr(owner, "get_property"):
        return int(owner.get_property("INFERENCE_NUM_THREADS"))
    session = getattr(owner, "__self__", None)
    if hasattr(session, "get_session_options"):
        return int(session.get_session_options().intra_op_num_threads)
    return torch.get_num_threads()


def some_mean(model: ViT, circuit: Circuit) -> Ablation:
    """Constants like those of mean ablation: which numbers they are decides no latency."""
    zero, generator = Ablation.zero(model, circuit.graph), torch.Generator().manual_seed(0)
    values = {name: torch.randn(value.shape, generator=generator) for name, value in zero.values.items()}
    return Ablation("mean", values, fingerprint(model))
