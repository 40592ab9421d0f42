"""What training leaves behind: one row per epoch, one per layer and recorded step, in memory and as CSV."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..circuit.files import write_text
from ..errors import InputError

METRICS_CSV, GRADIENT_CSV = "metrics.csv", "gradient_flow.csv"


@dataclass(frozen=True)
class EpochRow:
    """One epoch. ``step`` counts the updates since the start, ``seconds`` the training time of this epoch alone.

    Losses are in nats, accuracies from 0 to 1 (training: the share of images whose answer is the target's largest
    class); validation is None without validation batches. ``skipped`` updates had gradients that overflowed fp16.
    """

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float
    images_per_second: float
    skipped: int


@dataclass(frozen=True)
class GradientRow:
    """Mean and largest |gradient| over the parameters of one layer, before clipping, at update number ``step``."""

    step: int
    layer: str
    mean: float
    max: float


@dataclass(frozen=True)
class History:
    """All rows of a run, in order."""

    epochs: tuple[EpochRow, ...] = ()
    gradients: tuple[GradientRow, ...] = ()

    def __repr__(self) -> str:
        last = f", last {self.epochs[-1]}" if self.epochs else ""
        return f"History({len(self.epochs)} epochs, {len(self.gradients)} gradient rows{last})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of :meth:`from_dict`."""
        return {"epochs": [list(dataclasses.astuple(row)) for row in self.epochs],
                "gradients": [list(dataclasses.astuple(row)) for row in self.gradients]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> History:
        return cls(tuple(EpochRow(*row) for row in values["epochs"]),
                   tuple(GradientRow(*row) for row in values["gradients"]))


class Recorder:
    """Collects rows and appends each to its CSV file at once, so that a killed run has lost none.

    Starting it writes both files anew from ``history``: rows that a killed run wrote after its last checkpoint go away,
    because resuming computes them again. Without a folder it only collects.
    """

    def __init__(self, out: Path | None, history: History):
        self.epochs, self.gradients, self._out = list(history.epochs), list(history.gradients), out
        if out is None:
            return
        for name, kind, rows in ((METRICS_CSV, EpochRow, self.epochs), (GRADIENT_CSV, GradientRow, self.gradients)):
            header = [field.name for field in dataclasses.fields(kind)]
            with _named_failure(out / name):
                write_text(out / name, _csv_text([header, *map(dataclasses.astuple, rows)]))

    @property
    def history(self) -> History:
        return History(tuple(self.epochs), tuple(self.gradients))

    def add_epoch(self, row: EpochRow) -> None:
        self.epochs.append(row)
        self._append(METRICS_CSV, [row])

    def add_gradients(self, rows: Sequence[GradientRow]) -> None:
        self.gradients.extend(rows)
        self._append(GRADIENT_CSV, rows)

    def _append(self, name: str, rows: Sequence[EpochRow | GradientRow]) -> None:
        if self._out is None:
            return
        path = self._out / name
        with _named_failure(path), open(path, "a", encoding="utf-8", newline="") as file:
            file.write(_csv_text(map(dataclasses.astuple, rows)))
            file.flush()
            os.fsync(file.fileno())


def layer_of(name: str) -> str:
    """The layer a parameter counts under: ``blocks.3.attn`` for ``blocks.3.attn.qkv.weight``."""
    owner = name.split(".")[:-1] or [name]
    number = next((i for i, part in enumerate(owner) if part.isdigit()), None)
    return ".".join(owner[: number + 2]) if number is not None else owner[0]


@torch.no_grad()
def gradient_flow(model: nn.Module, step: int) -> list[GradientRow]:
    """The gradient rows of the gradients that ``model`` holds now, layers in the order of its parameters.

    One transfer from the device for all layers. Empty when a gradient is not finite, as in a skipped fp16 step.
    """
    sums, sizes = defaultdict(list), defaultdict(int)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            magnitude = parameter.grad.abs()
            sums[layer_of(name)].append(torch.stack([magnitude.sum().double(), magnitude.max().double()]))
            sizes[layer_of(name)] += magnitude.numel()
    if not sums:
        return []
    parts = [torch.stack(values) for values in sums.values()]
    flow = torch.stack([torch.stack([part[:, 0].sum(), part[:, 1].max()]) for part in parts]).cpu()
    if not flow.isfinite().all():
        return []
    return [GradientRow(step, layer, total / sizes[layer], largest)
            for layer, (total, largest) in zip(sums, flow.tolist(), strict=True)]


@contextlib.contextmanager
def _named_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError("the records could not be written", where=path, found=error,
                         remedy="make room and resume") from error


def _csv_text(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
