"""The circuits of ten chosen classes, and the dense model of the same task."""

from __future__ import annotations

from ..classes import NAME
from . import words
from .findings import Finding, Findings, accuracy, compared_with, origins

BASE = compared_with(NAME, "")


def cells(findings: Findings) -> str:
    """The dense model as it came, trained on the chosen classes alone, and its circuits."""
    columns = {"model": "l", "budget": "r", "S": "r", "parameters": "r", "accuracy [95 %]": "r",
               f"points above `{BASE}` [95 %]": "r", "accuracy before fine-tuning": "r",
               **words.speed_columns(findings.batches)}
    found = findings.of(NAME)
    rows = [row for one in found for row in _rows(one, findings)]
    return words.table(columns, rows) + "\n\n" + origins(found, findings.size.name, NAME)


def _rows(found: Finding, findings: Findings) -> list[list[str]]:
    """One; of the dense model two, before and after its training on the chosen classes."""
    base, budget = findings[BASE], found.kind()[1]
    what, share = ("dense, trained on them", words.NONE) if budget is None else ("circuit", f"{budget:g}")
    if not found.result:
        return [[what, share, words.OPEN]]
    before = found.result["before"]
    speeds = words.speeds(found, findings.batches)
    own = [what, share, words.work(found), f"{found.row['parameters']:,}", words.accuracy(found.accuracy),
           words.points(found.difference(base)), words.percent(before["accuracy"]), *speeds]
    if budget is not None:
        return [own]
    as_it_came = ["dense, of all classes", share, *own[2:4], words.accuracy(accuracy(before)), words.NONE, words.NONE,
                  *speeds]
    return [as_it_came, own]
