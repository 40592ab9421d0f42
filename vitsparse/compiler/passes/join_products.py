"""For GPUs: products that add to the same value become one product.

Heads whose inputs differ leave their results in values of their own, and where every reader takes them together, each
is multiplied and added in turn: a chain of small launches. Side by side in one value, they are one product.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import accumulate

from ..plan import Plan
from ..steps import Linear, Step, View, Weight, joint_name


def join_products(plan: Plan) -> Plan:
    """Merge each chain of ``+=`` whose sources are whole values that nobody else reads."""
    readers = Counter(view.name for step in plan.steps for view in set(step.reads))
    moved: dict[str, View] = {}  # a source -> its columns in the joint one
    merged: dict[Linear, Linear] = {}  # the last product of a chain -> the one that replaces all
    dropped: set[Linear] = set()
    for chain in _chains(plan):
        if all(readers[step.source.name] == 1 and step.source == plan.values.get(step.source.name) for step in chain):
            moved |= _side_by_side([step.source for step in chain])
            merged[chain[-1]] = _one_product(chain, moved)
            dropped |= set(chain[:-1])
    steps = tuple(merged[step] if step in merged else _moved(step, moved)  # type: ignore[index]
                  for step in plan.steps if step not in dropped)
    return plan.after("join_products", steps=steps)


def _chains(plan: Plan) -> list[list[Linear]]:
    """Products into one value, the first that sets it and those that add to it: two or more, nothing else between."""
    writers: dict[View, list[Step]] = {}
    for step in plan.steps:
        for view in step.writes:
            writers.setdefault(view, []).append(step)
    chains = [[step for step in steps if isinstance(step, Linear)] for steps in writers.values() if len(steps) > 1]
    return [chain for chain in chains if chain and _alike(chain)]


def _alike(chain: list[Linear]) -> bool:
    first, *rest = chain
    return not first.accumulate and all(
        step.accumulate and step.bias is None and step.weight.key == first.weight.key
        and step.weight.rows == first.weight.rows and step.source.rows == first.source.rows
        and (step.norm, step.scale, step.activation) == (first.norm, first.scale, first.activation) for step in rest
    ) and first.norm is None and first.activation == "none"


def _side_by_side(sources: list[View]) -> dict[str, View]:
    name = joint_name([source.name for source in sources])
    ends = accumulate(source.width for source in sources)
    return {source.name: View(name, source.rows, (end - source.width, end))
            for source, end in zip(sources, ends, strict=True)}


def _one_product(chain: list[Linear], moved: dict[str, View]) -> Linear:
    first, last = (moved[step.source.name] for step in (chain[0], chain[-1]))
    weight = Weight(chain[0].weight.key, chain[0].weight.rows,
                    tuple(columns for step in chain for columns in step.weight.cols))
    return replace(chain[0], source=View(first.name, first.rows, (0, last.cols[1])), weight=weight)


def _moved(step: Step, moved: dict[str, View]) -> Step:
    return step.map_writes(lambda view: moved.get(view.name, view))
