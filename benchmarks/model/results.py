"""Results of the model benchmarks: a JSON file per machine, its print-out, and the README's table.

``{"format", "version", "sections": {name: {"machine": facts, "rows": [...]}}}``: a section that is measured again
replaces its predecessor, so each has the facts of its own run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitsparse import InputError
from vitsparse.circuit.files import read_json, write_text
from vitsparse.evaluation.gpu import gpu_facts
from vitsparse.evaluation.latency import machine_facts

FOLDER = Path(__file__).parent.parent / "results"
FORMAT, VERSION = "vitsparse.benchmarks.model", 1
SHOWN = ("half", "third", "lean", "mixed", "found", "edges50", "full")
Row = Mapping[str, Any]
Sections = dict[str, dict[str, Any]]


def facts_of(threads: int) -> dict[str, Any]:
    """The machine, and what ran on it."""
    return {**{key: value for key, value in machine_facts().items() if value is not None}, "threads": threads}


def facts_of_gpu(dtype: str) -> dict[str, Any]:
    """The GPU at this moment, the machine around it, and what ran on it; None where something cannot be read."""
    return {**machine_facts(), **gpu_facts(), "dtype": dtype}


def default_file(facts: Mapping[str, Any]) -> Path:
    """Where results of a machine go: a name made of its processor, cores and threads, or of its GPU and the dtype."""
    if "dtype" in facts:
        return FOLDER / f"{slug(facts['gpu'])}-{facts['dtype']}.json"
    return FOLDER / f"{slug(facts['cpu'])}-{facts['cores']}-cores-{facts['threads']}-threads.json"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def load(file: Path) -> Sections:
    """The sections of a file; :class:`InputError` if it is no such file."""
    found = read_json(file)
    known = isinstance(found, dict) and (found.get("format"), found.get("version")) == (FORMAT, VERSION)
    if not known or not isinstance(found.get("sections"), dict):
        raise InputError("this is no file of benchmark results", where=file, expected=f"{FORMAT}, version {VERSION}",
                         found=str(found)[:80])
    return found["sections"]


def store(file: Path, name: str, section: Mapping[str, Any]) -> None:
    """Put a section into a file, atomically, a row a line; other sections stay."""
    sections = {**(load(file) if file.exists() else {}), name: section}
    texts = []
    for key, value in sections.items():
        rows = ",\n".join(f"    {json.dumps(row, allow_nan=False)}" for row in value["rows"])
        machine = json.dumps(value["machine"], allow_nan=False)
        texts.append(f'  {json.dumps(key)}: {{"machine": {machine},\n   "rows": [\n{rows}]}}')
    head = f'{{"format": {json.dumps(FORMAT)}, "version": {VERSION}, "sections": {{\n'
    write_text(file, head + ",\n".join(texts) + "}}\n")


def line(row: Row) -> str:
    """A row as a line of print."""
    name = row["name"] + (f" ({row['backend']})" if "backend" in row else "")
    name = f"{name:34}" + (f" batch {row['batch']:2}" if "batch" in row else "")
    if row.get("sums") == "float16":
        name += ", sums in float16"
    match row["kind"]:
        case "time":
            share = "" if row["flops_share"] is None else f", {row['flops_share']:.1%} of the FLOPs"
            digits = 4 if "warm_ms" in row else 3
            on = f"warm {row['warm_ms']:.4f}" if "warm_ms" in row else f"{row['threads']} threads"
            how = f", {row['how']}" if row.get("how") else ""
            said = f"{row['ms']:9.{digits}f} ms [{row['p20']:.{digits}f}, {row['p80']:.{digits}f}], {on}{share}{how}"
        case "error":
            said = f"{row['error']:9.2g} from {row['circuit']}"
        case "speed-up" | "price":
            said = f"{row['ratio']:9.2f} x  [{row['p20']:.2f}, {row['p80']:.2f}], against {row['theirs']}"
        case "seconds":
            said = f"{row['seconds']:9.3f} s, then {row['first_forward_s']:.3f} s to the first result"
        case "exponent":
            said = f"{row['exponent']:9.2f}"
        case "memory":
            said = (f"{row['ratio']:9.3f} of weights, offsets and buffers; the process grew by "
                    f"{row['grown_ratio']:.3f} of them")
    return "  ".join(filter(None, (name, said, verdict(row))))


def verdict(row: Row) -> str:
    """``target .., aim ..: met`` or ``MISSED``; nothing for what is only reported."""
    if row.get("target") is None:
        return ""
    sign = ">=" if row["kind"] == "speed-up" else "<="
    aim = f", aim {row['aim']:g} {'met' if row['aim_met'] else 'missed'}" if row.get("aim") is not None else ""
    return f"target {sign} {row['target']:g} {'met' if row['met'] else 'MISSED'}{aim}"


def misses(rows: Iterable[Row]) -> list[Row]:
    """The rows that do not reach their target."""
    return [row for row in rows if row.get("met") is False]


def readme(file: Path) -> str:
    """The speed tables of the README, in Markdown, from stored rows: what is compared, and milliseconds."""
    sections = load(file)
    if "latency" not in sections:
        raise InputError("the table needs the rows of the latency section", where=file,
                         remedy="python -m benchmarks.model latency")
    machine = sections["latency"]["machine"]
    blocks = ["\n".join(_ratios(sections["latency"]["rows"]))]
    for name in ("latency", "large"):
        if name in sections:
            blocks.append("\n".join(_times(sections[name]["rows"])))
    blocks.append(f"{machine['cpu']}, {machine['threads']} threads, float32, torch {machine['torch']}, "
                  f"{machine['date'][:10]}, commit {str(machine.get('commit'))[:10]}.")
    return "\n\n".join(blocks) + "\n"


def _ratios(rows: list[Row]) -> Iterator[str]:
    compared = [row for row in rows if row["kind"] in ("speed-up", "price") and row.get("target") is not None]
    batches = sorted({row["batch"] for row in compared})
    yield "| | " + " | ".join(f"batch {batch}" for batch in batches) + " |"
    yield "| --- |" + " --: |" * len(batches)
    for name in dict.fromkeys(row["name"] for row in compared):
        cells = [next((_cell(row) for row in compared if (row["name"], row["batch"]) == (name, batch)), "–")
                 for batch in batches]
        yield f"| {name} | {' | '.join(cells)} |"


def _cell(row: Row) -> str:
    times = "times as fast" if row["kind"] == "speed-up" else "of the time"
    missed = "" if row["met"] else f", target {row['target']:g} missed"
    return f"{row['ratio']:.2f} {times} [{row['p20']:.2f}, {row['p80']:.2f}]{missed}"


def _times(rows: list[Row]) -> Iterator[str]:
    times = {(row["model"], row["batch"], row["name"]): row["ms"] for row in rows if row["kind"] == "time"}
    shown = [name for name in SHOWN if any(key[2] == name for key in times)]
    yield f"| model, batch | OpenVINO, dense | {' | '.join(shown)} |"
    yield "| --- |" + " --: |" * (len(shown) + 1)
    for model, batch in dict.fromkeys(key[:2] for key in times):
        dense = times.get((model, batch, "D openvino"))
        cells = [_ms(times.get((model, batch, name)), dense) for name in shown]
        yield f"| {model.removeprefix('vit_')}, {batch} | {_ms(dense, None)} | {' | '.join(cells)} |"


def _ms(milliseconds: float | None, dense: float | None) -> str:
    if milliseconds is None:
        return "–"
    text = f"{milliseconds:.3g}" if milliseconds < 1000 else f"{milliseconds:.0f}"
    return text if dense is None else f"{text} ({dense / milliseconds:.1f}x)"
