"""The result files of one size, and what follows from them: intervals, paired differences, where they come from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsparse.errors import InputError, nearest
from vitsparse.evaluation.intervals import paired_difference, share_interval

from ..cells import CELLS
from ..journal import FORMAT, LATENCY_FORMAT, Cell, load_result
from ..judge import answers
from ..sizes import SIZES, Size

Spread = tuple[float, float, float]  # low, value, high


@dataclass(frozen=True)
class Finding:
    """What is known of a cell: its ``result`` and its ``latency`` as the files have them, None where not yet there."""

    cell: Cell
    result: Mapping[str, Any] | None
    latency: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        return self.cell.name

    @property
    def row(self) -> Mapping[str, Any]:
        return self.result["row"]

    @property
    def accuracy(self) -> Spread:
        return accuracy(self.row)

    def difference(self, other: Finding) -> Spread | None:
        """Accuracy above that of ``other`` on the same images; None for itself or where one is missing."""
        if self.name == other.name or self.result is None or other.result is None:
            return None
        value, low, high = paired_difference(answers(self.row), answers(other.row))
        return low, value, high

    def speedup(self, batch: int) -> Spread | None:
        """Times as fast as the dense model under its strongest runtime: p20, p50, p80."""
        timed = self.timed(batch)
        return timed and quantiles(timed["speedup"])

    def pruning(self, batch: int) -> Spread | None:
        """Times as fast as the dense model on the same kernels of ours, which is what the pruning alone brings."""
        timed = self.timed(batch)
        return timed and quantiles(timed["uncut"]["speedup"])

    def timed(self, batch: int) -> Mapping[str, Any] | None:
        return self.latency and self.latency["batches"].get(str(batch))

    def kind(self) -> tuple[str, float | None, int]:
        """(method, budget or None, random seed), as the name says."""
        found = re.fullmatch(r"(.+?)-(\d[\d.]*)(?:-seed(\d+))?", self.name)
        return (found[1], float(found[2]), int(found[3] or 0)) if found else (self.name, None, 0)


@dataclass(frozen=True)
class Findings:
    """All cells of a size by name, in the order of the journal."""

    size: Size
    cells: Mapping[str, Finding]

    @classmethod
    def load(cls, folder: Path, size: str) -> Findings:
        """From ``folder``/``size``; :class:`InputError` for a file that is of no cell, of another one or no result."""
        known = {f"{cell.name}{kind}.json" for cell in CELLS for kind in ("", ".latency")}
        for path in sorted((folder / size).glob("*.json")):
            if path.name not in known:
                raise InputError("the file is of no cell", where=path, expected="a cell of experiments.cells",
                                 found=path.name, remedy=nearest(path.name, known))
        read = {cell.name: Finding(cell, _read(folder / size / f"{cell.name}.json", FORMAT, size),
                                   _read(folder / size / f"{cell.name}.latency.json", LATENCY_FORMAT, size))
                for cell in CELLS}
        return cls(SIZES[size], read)

    def __getitem__(self, name: str) -> Finding:
        return self.cells[name]

    def of(self, experiment: str) -> list[Finding]:
        """Those of one experiment."""
        return [found for found in self.cells.values() if found.cell.experiment == experiment]

    @property
    def batches(self) -> Sequence[int]:
        return self.size.batches


def accuracy(row: Mapping[str, Any]) -> Spread:
    """(low, value, high): the share of right answers with its 95 % interval."""
    right = answers(row)
    low, high = share_interval(right)
    return low, int(right.sum()) / len(right), high


def quantiles(times: Mapping[str, float]) -> Spread:
    return times["p20"], times["p50"], times["p80"]


def compared_with(experiment: str, name: str) -> str:
    """The cell that accuracies of an experiment are compared with: the dense model that was trained as long."""
    if experiment == "seed_table":
        return "dense-seed+5" if name.endswith("+5") and name != "dense-seed+5" else "dense-seed"
    return {"pareto": "dense-own+5", "classes": "classes-dense", "baselines": "dense-seed"}[experiment]


def command(experiment: str, size: str) -> str:
    """What runs the open cells of an experiment."""
    module = "experiments" if experiment == "baselines" else f"experiments.{experiment}"
    return f"python -m {module} --size {size} --data PATH"


def origins(found: Sequence[Finding], size: str, experiment: str, kinds: Sequence[str] = ("made", "timed")) -> str:
    """The lines below a table: for each command, machine and commit, when and how long it worked on which cells; then
    the cells that ``experiment`` has still to run."""
    groups: dict[tuple[str, str, str], list[tuple[str, str, Mapping[str, Any]]]] = {}
    for cell, what, file in _files(found, kinds):
        key = file["command"], machine(file["machine"]), commit(file["machine"]["commit"])
        groups.setdefault(key, []).append((cell, what, file))
    lines = [_origin(key, files, alone=len(groups) == 1) for key, files in groups.items()]
    for what, names in (("Not yet run", [one.name for one in found if one.result is None]),
                        ("Not yet timed", [one.name for one in found if one.result and not one.latency])):
        if names:
            lines.append(f"- {what}: {', '.join(names)}; `{command(experiment, size)}` does it.")
    return "\n".join(lines)


def _files(found: Sequence[Finding], kinds: Sequence[str]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for what in kinds:
        for one in found:
            file = one.result if what == "made" else one.latency
            if file:
                yield one.name, what, file


def _origin(key: tuple[str, str, str], files: list[tuple[str, str, Mapping[str, Any]]], alone: bool) -> str:
    dates = sorted(file["machine"]["date"][:10] for _, _, file in files)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    work = []
    for what in ("made", "timed"):
        names = [cell for cell, this, _ in files if this == what]
        seconds = sum(file["seconds"] for _, this, file in files if this == what)
        if names:
            work.append(f"{what} {'' if alone else ', '.join(names) + ' '}in {seconds:,.0f} s")
    return f"- `{key[0]}`; {key[1]}; commit {key[2]}; {when}; {'; '.join(work)}."


def machine(facts: Mapping[str, Any]) -> str:
    """GPU if there is one, CPU, cores and threads, torch."""
    cpu = f"{facts['cpu']}, cores {facts['cores']}, threads {facts['threads']}, torch {facts['torch']}"
    return f"{facts['gpu']}, {cpu}" if facts["gpu"] else cpu


def commit(found: str | None) -> str:
    """The first ten digits, ``+dirty`` kept."""
    digits, dirty, _ = (found or "unknown").partition("+dirty")
    return digits[:10] + dirty


def _read(path: Path, format: str, size: str) -> Mapping[str, Any] | None:
    if not path.exists():
        return None
    found = load_result(path)
    cell = path.name.removesuffix(".json").removesuffix(".latency")
    expected = {"format": format, "cell": cell, "size": size}
    if wrong := {key: found.get(key) for key in expected if found.get(key) != expected[key]}:
        raise InputError("the file is of something else than its name says", where=path,
                         expected={key: expected[key] for key in wrong}, found=wrong)
    return found
