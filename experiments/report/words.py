"""How numbers are written in tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .findings import Finding, Spread, quantiles

NONE, OPEN, UNTIMED = "–", "not yet run", "not yet timed"


def table(columns: Mapping[str, str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; ``columns``: title to "l" or "r". Short rows are filled with nothing."""
    rules = {"l": "---", "r": "--:"}
    lines = [list(columns), [rules[side] for side in columns.values()],
             *([*row, *[""] * (len(columns) - len(row))] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def accuracy(spread: Spread) -> str:
    low, value, high = spread
    return f"{percent(value)} [{100 * low:.1f}, {100 * high:.1f}]"


def points(spread: Spread | None) -> str:
    """Percentage points with their sign."""
    if spread is None:
        return NONE
    low, value, high = (_signed(100 * share) for share in spread)
    return f"{value} [{low}, {high}]"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def times(spread: Spread | None) -> str:
    """p50 [p20, p80] of a ratio."""
    return UNTIMED if spread is None else "{1:.2f} [{0:.2f}, {2:.2f}]".format(*spread)


def seconds(spread: Mapping[str, float]) -> str:
    return "{1:.3g} [{0:.3g}, {2:.3g}]".format(*quantiles(spread))


def milliseconds(found: Finding, batch: int) -> str:
    """The model's and what runs it, then the dense model's and the runtime that was the strongest."""
    timed = found.timed(batch)
    if not timed:
        return ""
    strongest = timed["strongest"]
    ours = f"{timed['model']['p50']:.3g} {timed['model']['backend']}"
    return f"{ours} / {timed['dense'][strongest]['p50']:.3g} {strongest}"


def speeds(found: Finding, batches: Sequence[int]) -> list[str]:
    """For each batch size how many times as fast, how much of it is the pruning's, and the milliseconds of both."""
    return [cell for batch in batches
            for cell in (times(found.speedup(batch)), by_pruning(found, batch), milliseconds(found, batch))]


def by_pruning(found: Finding, batch: int) -> str:
    """p50 of the ratio to our own kernels on the dense model; a dense model does not run on them."""
    ratio = found.pruning(batch)
    return NONE if ratio is None or found.row["edges"] is None else f"{ratio[1]:.2f}"


def speed_columns(batches: Sequence[int]) -> dict[str, str]:
    """Titles of :func:`speeds`."""
    return {f"batch {batch}: {what}": "r" for batch in batches
            for what in ("times as fast [p20, p80]", "by pruning alone", "ms, and of the dense model")}


def work(found: Finding) -> str:
    """S, the dense FLOPs over those left."""
    return "nothing left" if found.row["S"] is None else f"{found.row['S']:.2f}"


def edges(found: Finding) -> str:
    row = found.row
    return NONE if row["edges"] is None else f"{row['edges_kept']:,} of {row['edges']:,}"


def nodes(found: Finding) -> str:
    row = found.row
    return NONE if row["nodes"] is None else f"{row['nodes_dead']}, {row['nodes_constant']} of {row['nodes']}"
