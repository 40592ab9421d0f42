"""Accuracy against measured latency: every cell, and several random seeds together."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from ..pareto import NAME, START
from . import words
from .findings import Finding, Findings, compared_with, origins

OURS = "budgeted"
BASE = compared_with(NAME, "")


def cells(findings: Findings) -> str:
    """A row for each cell."""
    base = findings[BASE]
    columns = {"method": "l", "budget": "r", "random seed": "r", "S": "r", "parameters": "r", "accuracy [95 %]": "r",
               f"points above `{BASE}` [95 %]": "r", "zero in it": "l", "accuracy before fine-tuning": "r",
               **words.speed_columns(findings.batches)}
    shown = _shown(findings)
    return words.table(columns, [_row(found, base, findings.batches) for found in shown]) + "\n\n" + origins(
        shown, findings.size.name, NAME)


def _shown(findings: Findings) -> list[Finding]:
    """The dense model before and after its five epochs, then method by method, from mild to hard."""
    found = findings.of(NAME)
    methods = list(dict.fromkeys(one.kind()[0] for one in found))
    return [findings[START], *sorted(found, key=lambda one: (
        methods.index(one.kind()[0]), -(one.kind()[1] or 1), one.kind()[2]))]


def _row(found: Finding, base: Finding, batches: Sequence[int]) -> list[str]:
    method, budget, seed = found.kind()
    head = [f"`{method}`" if budget is None else method, words.NONE if budget is None else f"{budget:g}", str(seed)]
    if not found.result:
        return [*head, words.OPEN]
    before, difference = found.result["before"], found.difference(base)
    return [*head, words.work(found), f"{found.row['parameters']:,}", words.accuracy(found.accuracy),
            words.points(difference), contains_zero(difference),
            words.percent(before["accuracy"]) if before else words.NONE, *words.speeds(found, batches)]


def contains_zero(difference: tuple[float, float, float] | None) -> str:
    if difference is None:
        return words.NONE
    return "yes" if difference[0] <= 0 <= difference[2] else "no"


def seeds(findings: Findings) -> str:
    """Mean and standard deviation over random seeds, where there are at least two of them."""
    base = findings[BASE]
    columns = {"method": "l", "budget": "r", "random seeds": "r", "S": "r", "accuracy": "r",
               f"points above `{BASE}`": "r",
               **{f"batch {batch}: times as fast": "r" for batch in findings.batches}}
    groups: dict[tuple[str, float], list[Finding]] = {}
    for found in _shown(findings):
        method, budget, _ = found.kind()
        if found.result and budget is not None:
            groups.setdefault((method, budget), []).append(found)
    rows = [[method, f"{budget:g}", str(len(group)), *_over(group, base, findings.batches)]
            for (method, budget), group in groups.items() if len(group) > 1]
    return words.table(columns, rows) if rows else "No method and budget has two random seeds yet."


def _over(group: Sequence[Finding], base: Finding, batches: Sequence[int]) -> list[str]:
    differences = [difference[1] for found in group if (difference := found.difference(base))]
    speeds = [[speed[1] for found in group if (speed := found.speedup(batch))] for batch in batches]
    return [_spread([found.row["S"] for found in group if found.row["S"]], "{:.2f}"),
            _spread([100 * found.row["accuracy"] for found in group], "{:.2f}", " %"),
            _spread([100 * value for value in differences], "{:+.2f}"),
            *(_spread(values, "{:.2f}") for values in speeds)]


def _spread(values: Sequence[float], pattern: str, unit: str = "") -> str:
    """Mean ± standard deviation (n - 1)."""
    if len(values) < 2:
        return words.NONE
    return f"{pattern.format(fmean(values))} ± {pattern.replace('+', '').format(stdev(values))}{unit}".replace("-", "−")
