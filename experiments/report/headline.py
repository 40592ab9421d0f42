"""The best of it, for the front page: what the circuits by latency keep of the accuracy, beside what they must beat."""

from __future__ import annotations

from . import words
from .findings import Finding, Findings, origins
from .pareto import BASE, NAME
from .targets import pruned_within

OTHERS = {"magnitude": "heads and MLP groups by magnitude", "importance": "heads and MLP groups by importance",
          "smaller": "a smaller dense ViT from scratch, with the same teacher at the end",
          "torch-pruning": "Torch-Pruning"}


def table(findings: Findings) -> str:
    """The dense model, our circuits in the order of their budgets (the first random seed), then the baselines."""
    columns = {"model": "l", "FLOPs left": "r", "accuracy [95 %]": "r", "points above the dense model [95 %]": "r",
               **{f"batch {batch}: {what}": "r" for batch in findings.batches
                  for what in (f"times as fast as {_strongest(findings, batch)} [p20, p80]", "by pruning alone")}}
    base = findings[BASE]
    shown = [(base, "dense, trained as long"),
             *((found, f"our circuit, {_budget(found)}") for found in pruned_within(findings)),
             *((found, f"{OTHERS[found.kind()[0]]}, {_budget(found)}") for found in findings.of(NAME)
               if found.kind()[0] in OTHERS)]
    shown = [(found, told) for found, told in shown if found.result]
    rows = [_row(found, told, base, findings) for found, told in shown]
    if not rows:
        return "Not yet run."
    return words.table(columns, rows) + "\n\n" + origins([found for found, _ in shown], findings.size.name, NAME)


def _budget(found: Finding) -> str:
    """Those that are cut to FLOPs are cut to those of our circuit of this budget."""
    method, budget, _ = found.kind()
    of_ours = method in ("smaller", "torch-pruning")
    return f"FLOPs of our circuit of {budget:.0%}" if of_ours else f"{budget:.0%} of the predicted latency"


def _row(found: Finding, told: str, base: Finding, findings: Findings) -> list[str]:
    share = f"{1 / found.row['S']:.0%}" if found.row["S"] else "none"
    return [told, share, words.accuracy(found.accuracy), words.points(found.difference(base)),
            *(cell for batch in findings.batches
              for cell in (words.times(found.speedup(batch)), words.by_pruning(found, batch)))]


def _strongest(findings: Findings, batch: int) -> str:
    """The runtime that was the strongest wherever the dense model was timed: its name, or that they differ."""
    names = {timed["strongest"] for found in findings.cells.values() if (timed := found.timed(batch))}
    return names.pop() if len(names) == 1 else "the strongest runtime"
