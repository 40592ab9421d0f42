"""The picture of what pruning buys: accuracy over measured speed, one mark for each model, panels for batch sizes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .style import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, PURPLE, house_style, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Spread = tuple[float, float, float]  # low, value, high

_COLOURS, _MARKERS = (BLUE, ORANGE, GREEN, INK, PURPLE), "osD^vP"
_TICKS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class Mark:
    """One model: its ``series`` (method), how many times as fast it is, its accuracy (0 to 1) and a ``note`` beside it.

    A ``minor`` mark repeats another one with other random numbers: it is smaller, without error bars, and no line goes
    through it.
    """

    series: str
    speed: Spread
    accuracy: Spread
    note: str = ""
    minor: bool = False


@dataclass(frozen=True)
class Level:
    """What all marks are compared with: a band of ``accuracy``, and the speeds of the same model by other means."""

    name: str
    accuracy: Spread
    speeds: Mapping[str, float]


def draw_pareto(panels: Mapping[str, tuple[Level, Sequence[Mark]]], title: str = "What pruning buys", *,
                lines: Collection[str] = (), unit: str = "times as fast") -> Figure:
    """Panels side by side, by title, all with the same axes; further up and to the right is better.

    Series in ``lines`` are joined and filled, the others are hollow; error bars are the given lows and highs. Speed is
    on a logarithmic axis, where equal ratios are equally far apart.
    """
    names = list(dict.fromkeys(mark.series for _, marks in panels.values() for mark in marks))
    looks = {name: _look(i, name in lines) for i, name in enumerate(names)}
    with house_style():
        figure, axes = new_figure(4.9 * len(panels), 4.3, len(panels))
        for place in axes[1:]:
            place.sharex(axes[0])
            place.sharey(axes[0])
            place.tick_params(labelleft=False)
        for place, (name, (level, marks)) in zip(axes, panels.items(), strict=True):
            _level(place, level)
            for series, look in looks.items():
                _series(place, [mark for mark in marks if mark.series == series], look, series in lines)
            place.set(title=name, xlabel=unit, xscale="log")
            place.margins(x=0.09, y=0.12)
        axes[0].set_ylabel("test accuracy (%)")
        for place in axes:
            _ticks(place)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3))
        figure.suptitle(title, x=0.01, ha="left", color=MUTED)
    return figure


def _look(index: int, joined: bool) -> dict[str, object]:
    """No two alike, also in grey: markers differ, and only what is joined is filled."""
    colour = _COLOURS[index % 5]
    return {"color": colour, "marker": _MARKERS[index % 6], "markerfacecolor": colour if joined else "white"}


def _level(axes: Axes, level: Level) -> None:
    low, value, high = (100 * share for share in level.accuracy)
    axes.axhspan(low, high, color=FAINT, alpha=0.45, linewidth=0, label=f"{level.name}: 95 % interval")
    axes.axhline(value, color=MUTED, linewidth=0.8, linestyle=(0, (5, 3)))
    for name, speed in level.speeds.items():
        axes.plot([speed], [value], color=INK, marker="|", markersize=9, markeredgewidth=1.6, linestyle="none")
        axes.annotate(name, (speed, value), (1, 7), textcoords="offset points", ha="left", va="center", fontsize=7.5,
                      color=INK, rotation=45, rotation_mode="anchor")


def _series(axes: Axes, marks: Sequence[Mark], look: Mapping[str, object], joined: bool) -> None:
    major = sorted((mark for mark in marks if not mark.minor), key=lambda mark: mark.speed[1])
    if joined:
        axes.plot([mark.speed[1] for mark in major], [100 * mark.accuracy[1] for mark in major],
                  color=look["color"], linewidth=1.4, zorder=2.5)
    for index, mark in enumerate(major):
        axes.errorbar(mark.speed[1], 100 * mark.accuracy[1], _errors(mark.accuracy, 100), _errors(mark.speed),
                      linestyle="none", markersize=7, elinewidth=0.8, markeredgewidth=1.4, zorder=3,
                      label=mark.series if index == 0 else None, **look)
        _note(axes, mark, look, above=joined)
    minor = [mark for mark in marks if mark.minor]
    if minor:
        axes.plot([mark.speed[1] for mark in minor], [100 * mark.accuracy[1] for mark in minor], linestyle="none",
                  markersize=3.5, zorder=3.5, label=f"{minor[0].series}, other random seeds", **look)


def _note(axes: Axes, mark: Mark, look: Mapping[str, object], above: bool) -> None:
    """Beside the mark, readable over lines; above it to the right, or below it to the left."""
    from matplotlib.patheffects import withStroke

    axes.annotate(mark.note, (mark.speed[1], 100 * mark.accuracy[1]), (7, 4) if above else (-6, -5),
                  textcoords="offset points", ha="left" if above else "right", va="baseline" if above else "top",
                  fontsize=7.5, color=look["color"], zorder=2.9,
                  path_effects=[withStroke(linewidth=2.2, foreground="white")])


def _errors(spread: Spread, scale: float = 1.0) -> list[list[float]]:
    low, value, high = spread
    return [[scale * (value - low)], [scale * (high - value)]]


def _ticks(axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
