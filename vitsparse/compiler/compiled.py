"""What a SparseViT runs: plans and packed programs made from its tensors as they are now."""

from __future__ import annotations

from dataclasses import replace
from operator import is_

import torch
from torch import Tensor, nn

from ..backends import native
from ..errors import InputError
from .compile import back, logits_plan
from .lower import Program, lower, pack_rows
from .plan import Plan
from .run_folded import Folded


class Compiled:
    """The plans of one module's tensors, and their packed programs; stale as soon as one of the tensors changes.

    A change is another tensor in the place of one, other memory behind it, or a write that torch counts. Writes through
    ``.data`` and steps of fused optimisers are not counted: ``stale`` is set where one may follow (a backward pass,
    ``train()``, ``eval()``).
    """

    def __init__(self, module: nn.Module, front: Plan):
        self.parameters = dict(module.named_parameters())
        self._front = front
        self._plans: dict[tuple[str, str], Plan] = {}
        self._programs: dict[tuple[str, str], Program] = {}
        self._folded: dict[tuple[str, str], Folded] = {}
        tables = [table for part in module.modules() for table in (part._parameters, part._buffers)]
        self._places = [(table, name) for table in tables for name in table]
        self._tensors = [table[name] for table, name in self._places]
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._state = self._look()
        self.stale = False
        self.plan("logits")

    def _look(self) -> list[tuple[int, int]]:
        return [(tensor._version, tensor.data_ptr()) for tensor in self._counted]

    def changed(self) -> bool:
        """Whether a tensor has changed since, or somebody has set ``stale``."""
        same = all(map(is_, [table.get(name) for table, name in self._places], self._tensors))
        return self.stale or not same or self._look() != self._state

    def wants_gradient(self, images: Tensor) -> bool:
        """Whether a forward now must be differentiable."""
        if not torch.is_grad_enabled():
            return False
        return images.requires_grad or any(value.requires_grad for value in self.parameters.values())

    def plan(self, which: str, target: str = "cpu") -> Plan:
        """The plan for ``"logits"`` or ``"features"`` on a target (:data:`.compile.TARGETS`), compiled on first use."""
        if (which, target) not in self._plans:
            features = which == "features"
            plan = back(self._front, target) if features else logits_plan(self._front, self.parameters, target)
            assert plan.values is not None  # computed here, because torch.compile cannot trace how
            self._plans[which, target] = plan
        return self._plans[which, target]

    def program(self, which: str, target: str = "cpu") -> Program:
        """The packed program of a plan, made on first use."""
        if (which, target) not in self._programs:
            self._programs[which, target] = self._pack(self.plan(which, target), target)
        return self._programs[which, target]

    def _pack(self, plan: Plan, target: str) -> Program:
        core, cpu = native.core(), target == "cpu"
        program = lower(plan, self.parameters, plan.constants, core.pack_linear if cpu else pack_rows)
        # conflicts within a wave too
        core.validate_program(program.code.numpy(), program.blob.numel(), "cpu" if cpu else "cuda")
        return program if cpu else program.to(self._like())

    def folded(self, which: str, target: str) -> Folded:
        """A plan with its operands ready for kernels called from Python, made on first use."""
        if (which, target) not in self._folded:
            self._folded[which, target] = Folded(self.plan(which, target), self.parameters, self._like())
        return self._folded[which, target]

    def _like(self) -> Tensor:
        return next(iter(self.parameters.values()))


class Packed:
    """The program for logits alone, when the parameters it was packed from are gone."""

    def __init__(self, compiled: Compiled):
        plan, self._program = compiled.plan("logits"), compiled.program("logits")
        shapes = {name: value.to("meta") for name, value in plan.constants.items()}  # their numbers are in the program
        self._plan = replace(plan, constants=shapes)

    def changed(self) -> bool:
        """Never: nothing is left to change."""
        return False

    def wants_gradient(self, images: Tensor) -> bool:
        """No; images that ask for one raise :class:`InputError`."""
        return torch.is_grad_enabled() and images.requires_grad and refuse("gradient")

    def plan(self, which: str, target: str = "cpu") -> Plan:
        """The plan for ``"logits"``; anything else raises :class:`InputError`."""
        return self._plan if which == "logits" else refuse(which)

    def program(self, which: str, target: str = "cpu") -> Program:
        """The packed program for ``"logits"``."""
        return self._program if which == "logits" else refuse(which)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Always raises :class:`InputError`."""
        return refuse("parameters")


def refuse(what: str):
    """Raise the :class:`InputError` that says that the parameters are gone."""
    raise InputError("the parameters were dropped, only the packed program for logits is left", where=what,
                     expected="a model with its parameters", found="inference_only=True",
                     remedy="compile without inference_only")
