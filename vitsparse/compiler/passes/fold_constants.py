"""Pass 2: what is the same for every image is computed once, now.

Ablation values are constants of the naive plan. A step that reads only constants is run here (in float64) and becomes
a constant itself; a sum keeps its varying senders and gets one [T, D] offset for all the others; attention whose q and
k are constant keeps only its pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...backends import reference
from ..execute import Environment
from ..plan import Plan
from ..steps import ApplyPattern, Attention, Embed, Step, SumNorm, View


def fold_constants(plan: Plan, parameters: Mapping[str, Tensor]) -> Plan:
    """``plan`` with everything constant folded; ``parameters`` are the dense model's, by key."""
    return _Folding(plan, parameters).run()


class _Folding:
    def __init__(self, plan: Plan, parameters: Mapping[str, Tensor]):
        self.plan = plan
        self.dtype = parameters["head.weight"].dtype
        wide = {key: value.detach().double().cpu() for key, value in parameters.items()}
        self.constants = {name: value.double().cpu() for name, value in plan.constants.items()}
        self.env = Environment(plan, wide, self.constants)
        self._names: dict[bytes, str] = {}

    def run(self) -> Plan:
        steps = [kept for step in self.plan.steps if (kept := self._fold(step)) is not None]
        constants = {name: value.to(self.dtype) for name, value in self.constants.items()}
        return self.plan.after("fold_constants", steps=tuple(steps), constants=constants)

    def _is_constant(self, view: View) -> bool:
        return view.name in self.constants

    def _fold(self, step: Step) -> Step | None:
        """The step as it stays, or None when its results have become constants."""
        if not isinstance(step, Embed) and all(map(self._is_constant, step.reads)):
            self._evaluate(step)
            return None
        if isinstance(step, SumNorm):
            return self._fold_sum(step)
        if isinstance(step, Attention) and self._is_constant(step.q) and self._is_constant(step.k):
            return self._fold_pattern(step)
        return step

    def _evaluate(self, step: Step) -> None:
        self.env.run(step, torch.empty(0), reference)
        for view in step.writes:
            self.constants[view.name] = self.env.read(view)[0]

    def _fold_sum(self, step: SumNorm) -> SumNorm:
        fixed = [view for view in step.senders if self._is_constant(view)]
        if not fixed:
            return step
        offset = torch.stack([self.constants[view.name] for view in fixed]).sum(0)
        varying = tuple(view for view in step.senders if not self._is_constant(view))
        return replace(step, senders=varying, offset=self._shared(f"offset.{step.readers[0]}", offset))

    def _shared(self, name: str, value: Tensor) -> str:
        """Store a constant, once for all that are equal bit by bit: equal offsets let readers be grouped."""
        name = self._names.setdefault(value.numpy().tobytes(), name)
        self.constants[name] = value
        return name

    def _fold_pattern(self, step: Attention) -> ApplyPattern:
        q, k = (self.env.read(view).unflatten(-1, (step.heads, step.head_dim)).squeeze(0) for view in (step.q, step.k))
        pattern = torch.einsum("qhe,khe->hqk", q, k).mul(step.head_dim**-0.5).softmax(-1)
        name = f"pattern.{step.out.name}"
        self.constants[name] = pattern
        return ApplyPattern(name, step.v, step.out, step.heads)
