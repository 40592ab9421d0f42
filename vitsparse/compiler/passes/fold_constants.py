"""Pass 2: what is the same for every image is computed once, now.

Ablation values are constants of the naive plan. A step that reads only constants is run here (in float64) and becomes
a constant itself; a sum keeps its varying senders and gets one [T, D] offset for all the others; attention whose q and
k are constant keeps only its pattern.

With half of the edges cut at random every reader has an offset of its own: adding them up one by one would go through
all constants once per reader. The readers of a layer do it in one matrix product of zeros and ones with the constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from ...backends import reference
from ..execute import Environment
from ..plan import Plan
from ..steps import ApplyPattern, Attention, Embed, Step, SumNorm, View

Names = tuple[str, ...]
ROWS = 16
"""Token rows that are added up at a time: few enough for the constants of all senders to stay in the cache."""


def fold_constants(plan: Plan, parameters: Mapping[str, Tensor]) -> Plan:
    """``plan`` with everything constant folded; ``parameters`` are the dense model's, by key.

    Neighbouring sums must not read each other's results: they are folded together.
    """
    return _Folding(plan, parameters).run()


class _Widened(Mapping[str, Tensor]):
    """Tensors in float64, each made when it is first asked for: most circuits have few constant nodes."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._made:
            self._made[key] = self._tensors[key].detach().double().cpu()
        return self._made[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class _Folding:
    def __init__(self, plan: Plan, parameters: Mapping[str, Tensor]):
        self.plan = plan
        self.dtype = parameters["head.weight"].dtype
        self.constants = {name: value.double().cpu() for name, value in plan.constants.items()}
        self.env = Environment(plan, _Widened(parameters), self.constants)
        self.offsets: dict[str, Tensor] = {}
        self._offset_of: dict[Names, str] = {}

    def run(self) -> Plan:
        steps: list[Step] = []
        for are_sums, group in groupby(self.plan.steps, lambda step: isinstance(step, SumNorm)):
            fold = self._fold_sums if are_sums else self._fold_others
            steps += fold(list(group))
        read = replace(self.plan, steps=tuple(steps)).names_read
        constants = {name: value.to(self.dtype) for name, value in self.constants.items() if name in read}
        return self.plan.after("fold_constants", steps=tuple(steps), constants=constants | self.offsets)

    def _is_constant(self, view: View) -> bool:
        return view.name in self.constants

    def _fold_others(self, steps: list[Step]) -> Iterator[Step]:
        """The steps as they stay; those over constants alone become constants."""
        for step in steps:
            if not isinstance(step, Embed) and all(map(self._is_constant, step.reads)):
                self._evaluate(step)
            elif isinstance(step, Attention) and self._is_constant(step.q) and self._is_constant(step.k):
                yield self._fold_pattern(step)
            else:
                yield step

    def _evaluate(self, step: Step) -> None:
        self.env.run(step, torch.empty(0), reference)
        for view in step.writes:
            self.constants[view.name] = self.env.read(view)[0]

    def _fold_sums(self, steps: list[SumNorm]) -> Iterator[SumNorm]:
        """The sums as they stay; what they read that is constant is added up for all of them at once."""
        fixed = [tuple(view.name for view in step.senders if self._is_constant(view)) for step in steps]
        sums = self._add_up([names for names in dict.fromkeys(fixed) if names])
        for step, names in zip(steps, fixed, strict=True):
            if len(names) == len(step.senders):
                self.constants["sum"] = sums[names]
                self._evaluate(replace(step, senders=(replace(step.senders[0], name="sum"),)))
            elif names:
                varying = tuple(view for view in step.senders if not self._is_constant(view))
                yield replace(step, senders=varying, offset=self._offset(names, sums[names], step.readers[0]))
            else:
                yield step

    def _add_up(self, sets: list[Names]) -> dict[Names, Tensor]:
        """For each set of constants their sum [T, D], in float64."""
        if not sets:
            return {}
        position = {name: column for column, name in enumerate(dict.fromkeys(name for names in sets for name in names))}
        table = torch.zeros(len(sets), len(position), dtype=torch.float64)
        for row, names in zip(table, sets, strict=True):
            row[[position[name] for name in names]] = 1
        values = [self.constants[name] for name in position]
        total = torch.empty(len(sets), *values[0].shape, dtype=torch.float64)
        for start in range(0, len(values[0]), ROWS):
            rows = torch.stack([value[start: start + ROWS] for value in values])
            total[:, start: start + ROWS] = torch.tensordot(table, rows, 1)
        return dict(zip(sets, total, strict=True))

    def _offset(self, names: Names, value: Tensor, reader: str) -> str:
        """Store a sum, once for all readers of the same constants: equal offsets let readers be grouped."""
        if names not in self._offset_of:
            self._offset_of[names] = f"offset.{reader}"
            self.offsets[f"offset.{reader}"] = value.to(self.dtype, copy=True)
        return self._offset_of[names]

    def _fold_pattern(self, step: Attention) -> ApplyPattern:
        q, k = (self.env.read(view).unflatten(-1, (step.heads, step.head_dim)).squeeze(0) for view in (step.q, step.k))
        pattern = torch.einsum("qhe,khe->hqk", q, k).mul(step.head_dim**-0.5).softmax(-1)
        name = f"pattern.{step.out.name}"
        self.constants[name] = pattern
        return ApplyPattern(name, step.v, step.out, step.heads)
