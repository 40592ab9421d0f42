"""The journal: cells in an order, each with a result file, run until time ends and resumed at the first open one.

A cell is done when its result file exists. Files are written atomically and last, models before them, so a run that is
killed anywhere repeats at most the cell it was in, and that cell goes on from its own checkpoints.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitsparse import InputError
from vitsparse.circuit.files import read_json, write_json
from vitsparse.evaluation.latency import machine_facts

from .lab import Lab, Made

FORMAT, LATENCY_FORMAT, VERSION = "vitsparse.experiments", "vitsparse.experiments.latency", 1
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cell:
    """One unit of work. ``make`` leaves a model in its folder and says how; ``needs`` are cells it starts from;
    ``of_chosen``: its task are the size's chosen classes alone."""

    name: str
    experiment: str
    make: Callable[[Lab, Path], Made]
    needs: tuple[str, ...] = ()
    of_chosen: bool = False


@dataclass(frozen=True)
class Journal:
    """``cells`` in order, their results in ``results``, what they leave (models, checkpoints) in the lab's folder."""

    cells: Sequence[Cell]
    lab: Lab
    results: Path
    command: str

    def __post_init__(self):
        seen: set[str] = set()
        for cell in self.cells:
            missing = [name for name in cell.needs if name not in seen]
            if missing or cell.name in seen:
                raise InputError("the cells are out of order", where=cell.name, found=missing or "twice",
                                 expected="each once, after what it needs")
            seen.add(cell.name)

    def file(self, cell: Cell, kind: str = "") -> Path:
        return self.results / f"{cell.name}{kind}.json"

    def open_cells(self) -> Iterator[Cell]:
        """Those whose result or latency is missing."""
        return (cell for cell in self.cells if not (self.file(cell).exists() and self.file(cell, ".latency").exists()))

    def run(self, seconds: float = float("inf")) -> list[str]:
        """Run open cells in order; none is begun when ``seconds`` are over.

        A cell that refuses its input, or for which the GPU has no room, is left out with its message, and the next one
        run; returns their names.
        """
        end, failed = time.monotonic() + seconds, []
        for cell in list(self.open_cells()):
            if time.monotonic() >= end:
                print(f"time is over before {cell.name}; the same command goes on there", flush=True)
                break
            try:
                self.run_cell(cell)
            except (InputError, torch.OutOfMemoryError) as error:
                failed.append(cell.name)
                print(f"{cell.name}: {error}", file=sys.stderr, flush=True)
        return failed

    def run_cell(self, cell: Cell) -> None:
        """Make the model unless its result is there, then time it."""
        folder = self.lab.out / cell.name
        lab = self.lab.among(self.lab.size.chosen) if cell.of_chosen else self.lab
        if not self.file(cell).exists():
            print(f"== {cell.name}", flush=True)
            start = time.perf_counter()
            for name in cell.needs:
                lab.require(name)
            made = cell.make(lab, folder)
            result = {"settings": made.settings, "row": made.row, "before": made.before, "training": made.training}
            self._write(cell, "", FORMAT, result, time.perf_counter() - start)
            print(f"{cell.name}: {made.row['accuracy']:.2%} with {made.row['flops'] / 1e6:.1f} MFLOP", flush=True)
        if not self.file(cell, ".latency").exists():
            start = time.perf_counter()
            latency = lab.time(folder)
            self._write(cell, ".latency", LATENCY_FORMAT, latency, time.perf_counter() - start)

    def _write(self, cell: Cell, kind: str, format: str, content: dict[str, Any], seconds: float) -> None:
        write_json(self.file(cell, kind), {
            "format": format, "version": VERSION, "cell": cell.name, "experiment": cell.experiment,
            "size": self.lab.size.name, "command": self.command, "machine": machine_facts(),
            "seconds": round(seconds, 1), **content})

    def status(self) -> Iterator[str]:
        """A line for each cell."""
        for cell in self.cells:
            done = [kind or "result" for kind in ("", ".latency") if self.file(cell, kind).exists()]
            state = "done" if len(done) == 2 else f"only the {done[0].strip('.')} is there" if done else "open"
            yield f"{cell.experiment:12} {cell.name:24} {state}"

    def forget(self, names: Sequence[str], kinds: Sequence[str] = ("", ".latency")) -> None:
        """Remove results of cells, which opens them again; with the result also the cell's folder, since a finished
        training or search in it would only be restored."""
        known = {cell.name: cell for cell in self.cells}
        for name in names:
            if name not in known:
                raise InputError("there is no such cell", where="--again", found=name, expected=", ".join(known))
            for kind in kinds:
                self.file(known[name], kind).unlink(missing_ok=True)
            if "" in kinds:
                shutil.rmtree(self.lab.out / name, ignore_errors=True)


def load_result(path: Path) -> dict[str, Any]:
    """A result or latency file; :class:`InputError` if it is none."""
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") not in (FORMAT, LATENCY_FORMAT) or (
            found.get("version") != VERSION):
        raise InputError("this is no result of an experiment", where=path, expected=f"{FORMAT}, version {VERSION}",
                         found=str(found)[:80])
    return found


def plain_values(values: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value as JSON) of every plain value."""
    if isinstance(values, Mapping) and values:
        for name, value in values.items():
            yield from plain_values(value, f"{path}.{name}" if path else name)
    else:
        yield path, json.dumps(values)
