"""What each pass did to a plan, for a person to read: ``print(explain(model, circuit, ablation=ablation))``."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import partial
from itertools import pairwise
from re import sub

import torch
from torch import Tensor

from ..circuit.circuit import Circuit
from ..circuit.operator import OPERATOR
from ..evaluation.ablation import Ablation
from ..model.vit import ViT
from .compile import BACK_PASSES, Pass, front_passes
from .operators import cut_head, translate_operators
from .passes.fold_constants import fold_constants
from .plan import Plan, dense_flops
from .sparsify import sparsify
from .steady import calibration_images, unsteady_readers
from .steps import ApplyPattern, Attention, Linear, SumNorm, SumNorms, total_length
from .translate import append_head, translate

WHOLE = 40
"""A plan of at most so many lines is shown whole; of a longer one, what a pass changed."""
CHANGES, LINES = 5, 4
"""Of a longer plan: how many changed places are shown, and how many lines at the most of each before and after."""


@dataclass(frozen=True)
class Stage:
    """A plan, what made it from the one before, and how many numbers it takes of the model's parameters.

    ``says`` is a sentence about what ``name`` does.
    """

    name: str
    says: str
    plan: Plan
    parameters: int


@dataclass(frozen=True)
class Explanation:
    """The plan before the first pass and after each. As text: a table, then what changed; :meth:`full` shows all."""

    stages: tuple[Stage, ...]

    def table(self) -> str:
        """A line per pass with the sizes of the plan that it left."""
        rows = [{"after": stage.name, **_sizes(stage)} for stage in self.stages]
        widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
        lines = [widths.keys(), *(row.values() for row in rows)]
        return "\n".join("  ".join(f"{cell:{'>' if place else '<'}{width}}" for place, (cell, width) in
                                   enumerate(zip(line, widths.values(), strict=True))) for line in lines)

    def full(self) -> str:
        """The table and every plan whole."""
        return self._text(str(stage.plan).splitlines() for stage in self.stages)

    def __str__(self) -> str:
        differences = (_difference(before, after) for before, after in pairwise(self.stages))
        return self._text([_beginning(self.stages[0].plan), *differences])

    def _text(self, bodies: Iterable[Iterable[str]]) -> str:
        parts = ("\n".join([f"== {stage.name}: {stage.says}", *body])
                 for stage, body in zip(self.stages, bodies, strict=True))
        return "\n\n".join([self.table(), *parts])


def explain(model: ViT, circuit: Circuit, *, ablation: Ablation, calibration: Tensor | None = None) -> Explanation:
    """How ``sparsify`` with the same arguments makes its plan for logits; refuses what that refuses."""
    sparsify(model, circuit, ablation=ablation, backend="torch", calibration=calibration)
    with torch.no_grad():
        return Explanation(tuple(_stages(model, circuit, ablation.stacked(circuit.graph), calibration)))


def _stages(model: ViT, circuit: Circuit, values: Tensor, calibration: Tensor | None) -> Iterator[Stage]:
    config, state = model.config, {key: value.detach() for key, value in model.state_dict().items()}
    if circuit.graph.granularity == OPERATOR:
        state = cut_head(config, circuit, state)
        plan = translate_operators(config, circuit, state)
    else:
        unsteady = unsteady_readers(model, circuit, values, calibration_images(model, calibration))
        plan = translate(config, circuit, values)
        plan = replace(plan, steps=tuple(replace(step, steady=unsteady.isdisjoint(step.readers))
                                         if isinstance(step, SumNorm) else step for step in plan.steps))
    yield Stage("translate", _first_sentence(translate), plan, _numbers(plan, state))
    for run_pass in front_passes(state):
        plan = run_pass(plan)
        yield _after(run_pass, plan, state)
    back = (partial(fold_constants, parameters=state),) if plan.output.name in plan.constants else BACK_PASSES
    plan = append_head(plan)
    yield Stage("append_head", "the classifier follows", plan, _numbers(plan, state))
    for run_pass in back:
        plan = run_pass(plan)
        yield _after(run_pass, plan, state)


def _after(run_pass: Pass, plan: Plan, state: Mapping[str, Tensor]) -> Stage:
    return Stage(plan.passes[-1], _first_sentence(getattr(run_pass, "func", run_pass)), plan, _numbers(plan, state))


def _numbers(plan: Plan, state: Mapping[str, Tensor]) -> int:
    """How many numbers are left of the dense model's parameters."""
    slices = plan.parameters or dict.fromkeys(state, ())
    return sum(math.prod((*map(total_length, kept), *state[key].shape[len(kept):])) for key, kept in slices.items())


def _first_sentence(function: Callable) -> str:
    """Of the module that a pass is, without its number."""
    text = " ".join((sys.modules[function.__module__].__doc__ or "").split("\n\n")[0].split())
    return text.partition(": ")[2].partition(". ")[0].removesuffix(".")


def _sizes(stage: Stage) -> dict[str, str]:
    """The columns of the table."""
    plan = stage.plan
    steps = [part for step in plan.steps for part in (step.parts if isinstance(step, SumNorms) else (step,))]
    sums = [step for step in steps if isinstance(step, SumNorm)]
    terms = sum(len(step.reads) + len(step.constants) for step in sums)
    products = sum(isinstance(step, Linear) for step in steps)
    attentions = sum(isinstance(step, Attention | ApplyPattern) for step in steps)
    constants = sum(value.nbytes for value in plan.constants.values())
    counts = {"steps": len(plan.steps), "waves": len(plan.waves), "sums": len(sums), "terms": terms,
              "products": products, "attentions": attentions}
    return {name: str(count) for name, count in counts.items()} | {
        "MFLOP": f"{plan.flops / 1e6:,.3f}", "of dense": f"{plan.flops / dense_flops(plan.config):.1%}",
        "parameters": f"{stage.parameters:,}", "kB moved": f"{plan.bytes / 1e3:,.1f}",
        "kB constant": f"{constants / 1e3:,.1f}"}


def _beginning(plan: Plan) -> list[str]:
    """A short plan whole, the first lines and the last of a long one."""
    head, *body = str(plan).splitlines()
    return [head, *body] if len(body) <= WHOLE else [head, *_cut(body[:-1], 3 * LINES), body[-1]]


def _difference(before: Stage, after: Stage) -> Iterator[str]:
    """What sizes changed, and then a short plan whole, or where a long one is not as it was."""
    old, new = (str(stage.plan).splitlines()[1:] for stage in (before, after))
    match = SequenceMatcher(None, list(map(_words, old)), list(map(_words, new)), autojunk=False)
    changed = [(old[a:b], new[c:d]) for kind, a, b, c, d in match.get_opcodes() if kind != "equal"]
    sizes = zip(_sizes(before).items(), _sizes(after).values(), strict=True)
    yield ", ".join(f"{name} {was} -> {now}" for (name, was), now in sizes if was != now) or "all sizes as before"
    if not changed:
        yield "every step as before"
    elif len(new) <= WHOLE:
        yield from new
    else:
        yield from _places(changed)


def _places(changed: list[tuple[list[str], list[str]]]) -> Iterator[str]:
    """The first places where two programs differ: ``-`` lines that went, ``+`` lines that came."""
    for went, came in changed[:CHANGES]:
        yield ""
        for sign, lines in (("-", went), ("+", came)):
            yield from (f"{sign} {line[:11]}{sub(' {3,}', '  ', line[11:])}" for line in _cut(lines, LINES))
    rest = changed[CHANGES:]
    if rest:
        yield (f"\n... and {sum(len(went) for went, _ in rest)} more lines that went, "
               f"{sum(len(came) for _, came in rest)} that came")


def _words(line: str) -> tuple[str, ...]:
    """What a line says, without its number, its wave and the width of its columns."""
    words = line.split()
    return tuple(words[2:] if words[0].isdecimal() else words)


def _cut(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[: most - 1], f"{'':11}... {len(lines) - most + 1} more lines"]
