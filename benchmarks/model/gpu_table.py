"""The README's tables of GPUs, from the files that were measured; a device nobody ran says so, whatever is expected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.model.on_cuda import BATCHES
from benchmarks.model.results import load

DEVICES = ("T4", "RTX 3070", "H200")
"""The devices that the table always names."""
SHOWN = ("half vs D", "lean vs D", "found vs D", "half vs C", "mixed vs half", "edges50 vs E", "full vs D")
NOT_MEASURED = "not measured"
Row = Mapping[str, Any]


def gpu_readme(folder: Path) -> str:
    """Markdown: the comparisons by device and batch, then milliseconds, then where each column comes from."""
    found = measured_in(folder)
    return "\n".join([*_comparisons(found), "", *_milliseconds(found), "", *_sources(found)]) + "\n"


def measured_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Sections ``latency`` in float16 by device, :data:`DEVICES` first; empty where none was measured."""
    sections = {}
    for file in sorted(folder.glob("*-float16.json")):
        section = load(file).get("latency")
        if section and section["machine"].get("dtype") == "float16":
            sections[section["machine"]["gpu"]] = section
    by_device: dict[str, dict[str, Any]] = {}
    for device in DEVICES:
        names = [name for name in sections if device in name]
        by_device[device] = sections.pop(names[0]) if names else {}
    return by_device | sections


def _comparisons(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    columns = [(device, batch) for device in found for batch in BATCHES]
    yield "| float16 | " + " | ".join(f"{device}, batch {batch}" for device, batch in columns) + " |"
    yield "| --- |" + " --: |" * len(columns)
    for name in SHOWN:
        cells = (best_of(found[device].get("rows", ()), name, batch) for device, batch in columns)
        yield f"| {name} | {' | '.join(map(_cell, cells))} |"


def best_of(rows: Iterable[Row], name: str, batch: int) -> Row | None:
    """A comparison by its faster backend, sums in float32; None where it was not measured."""
    fitting = [row for row in rows if (row["name"], row.get("batch"), row.get("sums")) == (name, batch, "float32")
               and row["kind"] in ("speed-up", "price")]
    best = min if any(row["kind"] == "price" for row in fitting) else max
    return best(fitting, key=lambda row: row["ratio"], default=None)


def _cell(row: Row | None) -> str:
    if row is None:
        return NOT_MEASURED
    sign = "" if row["kind"] == "price" else "x"
    missed = f", {row['target']:.3g} missed" if row["met"] is False else ""
    return f"{row['ratio']:.2f}{sign} [{row['p20']:.2f}, {row['p80']:.2f}] ({row['backend']}{missed})"


def _milliseconds(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    circuits = ("half", "lean", "found", "mixed", "edges50", "full")
    yield f"| ms, device and batch | dense (D) | {' | '.join(circuits)} |"
    yield "| --- |" + " --: |" * (len(circuits) + 1)
    for device, section in found.items():
        for batch in BATCHES:
            times = {row["name"]: row["ms"] for row in section.get("rows", ()) if row["kind"] == "time"
                     and (row["batch"], row.get("sums")) == (batch, "float32")}
            cells = [_fastest(times, "D ")] + [_fastest(times, f"{name}, ", mean=False) for name in circuits]
            yield f"| {device}, {batch} | {' | '.join(cells)} |"


def _fastest(times: Mapping[str, float], start: str, *, mean: bool = True) -> str:
    """The least of the candidates whose names begin so, without those under mean ablation unless ``mean``."""
    fitting = [ms for name, ms in times.items() if name.startswith(start) and (mean or ", mean, " not in name)]
    return f"{min(fitting):.3g}" if fitting else NOT_MEASURED


def _sources(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for device, section in found.items():
        if not section:
            yield f"{device}: {NOT_MEASURED}."
            continue
        facts = section["machine"]
        clock = facts.get("clock_mhz")
        yield (f"{device}: {facts['gpu']}, driver {facts.get('driver')}, {clock or 'unknown'} MHz, "
               f"torch {facts['torch']}, {facts['date'][:10]}, commit {str(facts.get('commit'))[:10]}.")
