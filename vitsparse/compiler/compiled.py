"""What a SparseViT runs: plans and packed programs made from its tensors as they are now."""

from __future__ import annotations

from dataclasses import replace
from operator import is_

import torch
from torch import Tensor, nn

from ..backends import native
from ..errors import InputError
from .compile import back, logits_plan
from .lower import Program, lower
from .plan import Plan


class Compiled:
    """The plans of one module's tensors, and their packed programs; stale as soon as one of the tensors changes.

    A change is another tensor in the place of one, other memory behind it, or a write that torch counts. Writes through
    ``.data`` and steps of fused optimisers are not counted: ``stale`` is set where one may follow (a backward pass,
    ``train()``, ``eval()``).
    """

    def __init__(self, module: nn.Module, front: Plan):
        self.parameters = dict(module.named_parameters())
        self._front = front
        self._plans = {"logits": logits_plan(front, self.parameters)}
        self._programs: dict[str, Program] = {}
        tables = [table for part in module.modules() for table in (part._parameters, part._buffers)]
        self._places = [(table, name) for table in tables for name in table]
        self._tensors = [table[name] for table, name in self._places]
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._state = self._look()
        self.stale = False

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

    def plan(self, which: str) -> Plan:
        """The plan for ``"logits"`` or ``"features"``; the second is compiled on first use."""
        if which not in self._plans:
            self._plans[which] = back(self._front)
        return self._plans[which]

    def program(self, which: str) -> Program:
        """The packed program of a plan, made on first use."""
        if which not in self._programs:
            plan, core = self.plan(which), native.core()
            program = lower(plan, self.parameters, plan.constants, core.pack_linear)
            core.validate_program(program.code.numpy(), program.blob.numel())  # conflicts within a wave too
            self._programs[which] = program
        return self._programs[which]


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

    def plan(self, which: str) -> Plan:
        """The plan for ``"logits"``; anything else raises :class:`InputError`."""
        return self._plan if which == "logits" else refuse(which)

    def program(self, which: str) -> Program:
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
