"""Pictures of a training run: its curves, and how large the gradients were in which layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from .style import BLUE, INK, MUTED, ORANGE, house_style, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Epoch(Protocol):
    """What :func:`draw_curves` reads of an epoch; losses in nats, accuracies 0 to 1, None where not measured."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None


class GradientRecord(Protocol):
    """What :func:`draw_gradient_flow` reads: mean and largest |gradient| of a layer at an update."""

    step: int
    layer: str
    mean: float
    max: float


def draw_curves(epochs: Sequence[Epoch], title: str = "Training") -> Figure:
    """Loss, accuracy and learning rate over epochs, side by side; each curve carries its last value."""
    numbers = [row.epoch + 1 for row in epochs]
    with house_style():
        figure, (loss, accuracy, rate) = new_figure(11, 3.4, 3, width_ratios=(1, 1, 0.7))
        _pair(loss, numbers, [row.train_loss for row in epochs], [row.val_loss for row in epochs], "{:.3f}")
        _pair(accuracy, numbers, [100 * row.train_accuracy for row in epochs],
              [None if row.val_accuracy is None else 100 * row.val_accuracy for row in epochs], "{:.1f}")
        rate.plot(numbers, [row.lr for row in epochs], color=MUTED)
        rate.yaxis.set_major_formatter("{x:.1e}")
        for axes, name in ((loss, "loss (nats)"), (accuracy, "accuracy (%)"), (rate, "learning rate")):
            axes.set(xlabel="epoch", title=name)
            axes.margins(x=0.02)
            axes.xaxis.get_major_locator().set_params(integer=True)
        accuracy.legend(loc="lower right")
        figure.suptitle(title, x=0.01, ha="left", color=MUTED)
    return figure


def _pair(axes: Axes, numbers: list[int], train: list[float], val: list[float | None], pattern: str) -> None:
    """Training and validation as two curves; a marker for a run of one epoch, where a line would be invisible."""
    marker = "o" if len(numbers) == 1 else None
    for name, values, color in (("training", train, BLUE), ("validation", val, ORANGE)):
        measured = [(n, v) for n, v in zip(numbers, values, strict=True) if v is not None]
        if measured:
            axes.plot(*zip(*measured, strict=True), color=color, marker=marker,
                      label=f"{name}, last {pattern.format(measured[-1][1])}")
    if axes.lines:
        axes.legend(loc="upper right")


def draw_gradient_flow(rows: Sequence[GradientRecord], title: str = "Gradient flow") -> Figure:
    """Which layers learn, and when: mean |gradient| as a map of layers over updates, mean and largest at the side.

    The map is logarithmic, so that a layer whose gradients vanish or explode stands out against its neighbours. The
    side panel takes the median over all recorded updates of the mean and of the largest |gradient| per layer.
    """
    layers = list(dict.fromkeys(row.layer for row in rows))
    steps = sorted({row.step for row in rows})
    mean = _matrix(rows, layers, steps, "mean")
    with house_style():
        height = 1.5 + _row_height(len(layers)) * len(layers)
        figure, (over_time, overall) = new_figure(11, height, 2, width_ratios=(1.7, 1))
        _map_over_time(figure, over_time, mean, layers, steps)
        _spans(overall, mean, _matrix(rows, layers, steps, "max"), layers)
        figure.suptitle(title, x=0.01, ha="left", color=MUTED)
    return figure


def _row_height(rows: int) -> float:
    """Inches: rows move together where there are many, down to what the font needs."""
    return min(max(6.5 / max(rows, 1), 0.17), 0.3)


def _matrix(rows: Sequence[GradientRecord], layers: list[str], steps: list[int], field: str) -> list[list[float]]:
    """[layers][steps], NaN where nothing was recorded or the value is zero (it has no logarithm)."""
    row_of, column_of = ({name: i for i, name in enumerate(names)} for names in (layers, steps))
    matrix = [[math.nan] * len(steps) for _ in layers]
    for row in rows:
        matrix[row_of[row.layer]][column_of[row.step]] = getattr(row, field) or math.nan
    return matrix


def _map_over_time(figure: Figure, axes: Axes, mean: list[list[float]], layers: list[str], steps: list[int]) -> None:
    from matplotlib.colors import LogNorm

    finite = [value for line in mean for value in line if math.isfinite(value)] or [1.0]
    mesh = axes.pcolormesh(_edges(steps), [i - 0.5 for i in range(len(layers) + 1)], mean, cmap="viridis",
                           norm=LogNorm(min(finite), max(*finite, 1.001 * min(finite))), rasterized=True)
    axes.set(title="mean |gradient| over training", xlabel="update", yticks=range(len(layers)), yticklabels=layers)
    axes.invert_yaxis()
    axes.grid(visible=False)
    figure.colorbar(mesh, ax=axes, pad=0.01, aspect=35).outline.set_visible(False)


def _edges(steps: list[int]) -> list[float]:
    """Borders of the cells: halfway between recorded updates, the outer ones as wide as their neighbours."""
    if len(steps) == 1:
        return [steps[0] - 0.5, steps[0] + 0.5]
    middle = [(a + b) / 2 for a, b in itertools.pairwise(steps)]
    return [2 * steps[0] - middle[0], *middle, 2 * steps[-1] - middle[-1]]


def _spans(axes: Axes, mean: list[list[float]], largest: list[list[float]], layers: list[str]) -> None:
    import numpy as np

    means, tops = (np.nanmedian(np.where(np.isnan(m), 0.0, m), axis=1) for m in (mean, largest))
    rows = np.arange(len(layers))
    floor = min((value for value in means if value > 0), default=1e-12)
    axes.hlines(rows, np.maximum(means, floor), np.maximum(tops, floor), color=MUTED, linewidth=1)
    axes.scatter(np.maximum(means, floor), rows, color=BLUE, s=26, zorder=3, label="mean")
    axes.scatter(np.maximum(tops, floor), rows, color=ORANGE, s=26, marker="D", zorder=3, label="largest")
    axes.set(xscale="log", title="median", xlabel="|gradient|, median over updates", yticks=rows,
             ylim=(len(layers) - 0.5, -0.5))
    axes.tick_params(axis="y", labelleft=False, color=INK)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.1, handletextpad=0.1,
                columnspacing=1)
