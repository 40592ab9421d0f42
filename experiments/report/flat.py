"""Results as flat rows, one for each cell that has run: what one loads into pandas."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from .findings import Finding, Findings, Spread, accuracy, compared_with

DIGITS = 6  # after the point of what is computed here, so that every machine writes the same


def rows(findings: Findings, experiment: str) -> list[dict[str, Any]]:
    """Of one experiment, and of the cells that its own start from or are compared with."""
    needed = {name for found in findings.of(experiment) for name in (*found.cell.needs, found.name,
                                                                      compared_with(experiment, found.name))}
    return [dict(_row(found, experiment, findings)) for found in findings.cells.values()
            if found.name in needed and found.result]


def as_csv(table: list[dict[str, Any]]) -> str:
    """The columns of all rows in their order; nothing where a row has none."""
    columns = list(dict.fromkeys(name for row in table for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def as_json(table: list[dict[str, Any]]) -> str:
    return json.dumps(table, indent=1, allow_nan=False) + "\n"


def _row(found: Finding, experiment: str, findings: Findings) -> Iterator[tuple[str, Any]]:
    method, budget, seed = found.kind()
    yield from {"size": findings.size.name, "experiment": found.cell.experiment, "cell": found.name, "method": method,
                "budget": budget, "seed": seed}.items()
    yield from ((name, value) for name, value in found.row.items() if name not in ("right", "accuracy"))
    yield from _spread("accuracy", found.accuracy)
    yield from _difference(found, findings[compared_with(experiment, found.name)])
    before = found.result["before"]
    if before:
        yield from _spread("before_accuracy", accuracy(before))
        yield from (("before_loss", before["loss"]), ("before_kl", before["kl"]))
    yield from _training(found.result["training"])
    for kind, file in (("made", found.result), ("timed", found.latency)):
        if file:
            yield from _origin(kind, file)
    if found.latency:
        yield from _latency(found.latency)


def _spread(name: str, spread: Spread) -> Iterator[tuple[str, float]]:
    low, value, high = (round(share, DIGITS) for share in spread)
    yield from ((name, value), (f"{name}_low", low), (f"{name}_high", high))


def _difference(found: Finding, other: Finding) -> Iterator[tuple[str, Any]]:
    """Answers to the same images alone are compared: the dense model of all classes has others than that of ten."""
    same = other.result and found.row["images"] == other.row["images"] and found.cell.of_chosen == other.cell.of_chosen
    difference = found.difference(other) if same else None
    if difference:
        yield "compared_with", other.name
        yield from _spread("difference", difference)


def _training(training: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    if training:
        yield from ((f"training_{name}", training[name]) for name in (
            "epochs", "seconds", "seconds_with_validation", "images_per_second"))


def _origin(kind: str, file: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    facts, names = file["machine"], ("cpu", "cores", "threads", "gpu", "torch", "commit", "date")
    yield from ((f"{kind}_{name}", facts[name]) for name in names)
    yield from ((f"{kind}_seconds", file["seconds"]), (f"{kind}_command", file["command"]))


def _latency(latency: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for batch, timed in latency["batches"].items():
        yield f"batch_{batch}_backend", timed["model"]["backend"]
        yield f"batch_{batch}_strongest", timed["strongest"]
        for name, times in (("ms", timed["model"]), *((f"{runtime}_ms", dense) for runtime, dense in
                                                     timed["dense"].items()), ("speedup", timed["speedup"])):
            yield from ((f"batch_{batch}_{name}_{q}", times[q]) for q in ("p20", "p50", "p80"))
    yield from (("timed_dtype", latency["dtype"]), ("timed_accuracy", latency["accuracy"]))
    loop = latency["loop"]
    yield "loop_runner", loop["runner"]
    for part in ("loop_s", "model_s"):
        yield from ((f"{part}_{q}", loop[part][q]) for q in ("p20", "p50", "p80"))
