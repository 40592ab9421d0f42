"""The pictures of the experiments. Each SVG carries a digest of what it was drawn from: a stale one is known by it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitsparse.report import Level, Mark, draw_pareto, save_figure

from .findings import Finding, Findings, accuracy, compared_with, quantiles

LABELS = {"budgeted": "budgeted circuits", "magnitude": "magnitude", "importance": "importance of nodes",
          "smaller": "smaller dense ViT", "torch-pruning": "Torch-Pruning", "classes": "circuits of the ten classes"}
JOINED = (LABELS["budgeted"], LABELS["classes"])
NAMES = {"eager": "eager", "compile": "torch.compile", "openvino": "OpenVINO", "tensorrt": "TensorRT"}
TITLES = {"pareto": "Accuracy over measured speed", "classes": "Ten chosen classes"}


@dataclass(frozen=True)
class Picture:
    """What :func:`~vitsparse.report.draw_pareto` is given; ``stem`` of the two files."""

    stem: Path
    panels: Mapping[str, tuple[Level, Sequence[Mark]]]
    title: str
    unit: str

    @property
    def digest(self) -> str:
        panels = [[name, dataclasses.asdict(level), *map(dataclasses.asdict, marks)]
                  for name, (level, marks) in self.panels.items()]
        return "drawn-from-" + hashlib.sha256(json.dumps([self.title, self.unit, panels]).encode()).hexdigest()[:24]

    def save(self) -> None:
        figure = draw_pareto(self.panels, self.title, lines=JOINED, unit=self.unit)
        figure.set_gid(self.digest)
        save_figure(figure, self.stem, dpi=160)

    def is_there(self) -> bool:
        """Whether both files are, and the SVG shows these values."""
        svg, png = (Path(f"{self.stem}.{kind}") for kind in ("svg", "png"))
        return png.exists() and svg.exists() and f'id="{self.digest}"' in svg.read_text(encoding="utf-8")


def stem(experiment: str, size: str) -> str:
    return f"{experiment}/{experiment}-{size}"


def picture(findings: Findings, experiment: str, folder: Path) -> Picture | None:
    """Of an experiment; None until the dense model and one other have been measured and timed."""
    base = findings[compared_with(experiment, "")]
    others = [found for found in findings.of(experiment) if found.result and found.latency and found is not base]
    if not (base.result and base.latency and others):
        return None
    panels = {f"batch {batch}": (_level(base, batch), [*(_mark(one, batch) for one in others),
                                                       *_as_it_came(base, batch)]) for batch in findings.batches}
    size = findings.size
    classes = f"{len(size.chosen)} of {size.classes}" if base.cell.of_chosen else size.classes
    return Picture(folder / stem(experiment, size.name), panels,
                   f"{TITLES[experiment]}: {size.model}, {classes} classes, on {_device(base)}",
                   "times as fast as the dense model under its strongest runtime")


def _device(found: Finding) -> str:
    facts = found.latency["machine"]
    return facts["gpu"] or f"{facts['cpu']}, threads {facts['threads']}"


def _level(base: Finding, batch: int) -> Level:
    timed = base.timed(batch)
    best = timed["dense"][timed["strongest"]]["p50"]
    return Level("dense, trained as long", _rounded(base.accuracy),
                 {NAMES.get(name, name): round(best / dense["p50"], 4) for name, dense in timed["dense"].items()})


def _as_it_came(base: Finding, batch: int) -> Sequence[Mark]:
    """The dense model before it was trained on the chosen classes alone."""
    before = base.result["before"]
    speed = _rounded(quantiles(base.timed(batch)["speedup"]))
    return [Mark("dense, of all classes", speed, _rounded(accuracy(before)))] if before else []


def _mark(found: Finding, batch: int) -> Mark:
    method, _, seed = found.kind()
    note = "" if seed or found.row["S"] is None else f"S {found.row['S']:.1f}"
    return Mark(LABELS.get(method, method), _rounded(quantiles(found.timed(batch)["speedup"])),
                _rounded(accuracy(found.row)), note, minor=bool(seed))


def _rounded(spread: Sequence[float]) -> tuple[float, float, float]:
    low, value, high = (round(number, 6) for number in spread)
    return low, value, high
