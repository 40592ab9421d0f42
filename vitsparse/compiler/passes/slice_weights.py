"""Pass 6: keep only the rows and columns of each parameter that some step uses.

The parameters keep timm's keys; ``plan.parameters`` says which part of the dense tensor each one is. What remains of
the packing (affine and LayerScale folded in, panels laid out for the kernel) happens when a plan is lowered, because it
has to be redone whenever a parameter changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..plan import Plan
from ..steps import Embed, Linear, Range, Step, SumNorm, length, union
from ..translate import head_norm

Slices = tuple[tuple[Range, ...], ...]


def slice_weights(plan: Plan) -> Plan:
    """Slice every parameter to what the plan uses and let the steps point into the slices."""
    used = _head_parameters(plan)
    for step in plan.steps:
        for key, ranges in _uses(step, scaled=bool(plan.config.init_values)):
            sets = used.setdefault(key, [set() for _ in ranges])
            for found, new in zip(sets, ranges, strict=True):
                found.update(new)
    parameters = {key: tuple(map(union, sets)) for key, sets in used.items()}
    steps = tuple(_repoint(step, parameters) if isinstance(step, Linear) else step for step in plan.steps)
    return plan.after("slice_weights", steps=steps, parameters=parameters)


def _head_parameters(plan: Plan) -> dict[str, list[set[Range]]]:
    """The head stays whole: it is not part of the graph, and it follows a plan only later."""
    norm, classes, width = head_norm(plan.config), (0, plan.config.num_classes), (0, plan.config.embed_dim)
    return {f"{norm}.weight": [], f"{norm}.bias": [], "head.weight": [{classes}, {width}], "head.bias": [{classes}]}


def _uses(step: Step, *, scaled: bool) -> Iterable[tuple[str, Slices]]:
    """(key, ranges per sliced dimension) of every parameter a step reads; no ranges: all of it."""
    if isinstance(step, Embed):
        kept = {"cls_token": step.class_token, "pos_embed": step.positions}
        yield from ((f"patch_embed.proj.{part}", ()) for part in ("weight", "bias"))
        yield from ((key, ()) for key, yes in kept.items() if yes)
    elif isinstance(step, SumNorm):
        for layer in step.biases:
            yield f"blocks.{layer}.attn.proj.bias", ()
            if scaled:
                yield f"blocks.{layer}.ls1.gamma", ()
    elif isinstance(step, Linear):
        yield step.weight.key, (step.weight.rows, step.weight.cols)
        if step.bias is not None:
            yield step.bias.key, (step.bias.rows,)
        if step.norm is not None:
            yield from ((f"{step.norm}.{part}", ()) for part in ("weight", "bias"))
        if step.scale is not None:
            yield step.scale, ()


def _repoint(step: Linear, parameters: Mapping[str, Slices]) -> Linear:
    rows, cols = parameters[step.weight.key]
    weight = replace(step.weight, rows=_positions(step.weight.rows, rows), cols=_positions(step.weight.cols, cols))
    bias = step.bias and replace(step.bias, rows=_positions(step.bias.rows, parameters[step.bias.key][0]))
    return replace(step, weight=weight, bias=bias)


def _positions(ranges: tuple[Range, ...], kept: tuple[Range, ...]) -> tuple[Range, ...]:
    """Where ``ranges`` of the dense parameter lie in the sliced one."""
    found = []
    for start, stop in ranges:
        base = 0
        for kept_range in kept:
            if kept_range[0] <= start < kept_range[1]:
                found.append((base + start - kept_range[0], base + stop - kept_range[0]))
                break
            base += length(kept_range)
    return tuple(found)
