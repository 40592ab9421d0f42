"""Pictures of what circuits are worth: faithfulness over their size, and quality over latency."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from .style import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, PURPLE, house_style, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOWEST = -0.5
"""Where the faithfulness axis is cut off: some circuits are far worse than the empty one, and nobody reads how far."""
BASELINES = ("random", "magnitude")
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, INK)
_LINES = ("-", "--", ":")
_MARKERS = "osD^vP"


class FaithfulnessCurve(Protocol):
    """What :func:`draw_faithfulness` reads: shares of the edges, f of each circuit, and the area under f."""

    fractions: Sequence[float]
    faithfulness: Sequence[float]
    cpr: float


def draw_faithfulness(curves: Mapping[str, FaithfulnessCurve], title: str = "Faithfulness",
                      baselines: Collection[str] = BASELINES) -> Figure:
    """One curve per method over the share of edges kept, in the order of their areas; ``baselines`` are grey.

    1 is the model, 0 the empty circuit. The axis ends at :data:`LOWEST`; a curve that leaves it comes back.
    """
    order = sorted(curves, key=lambda name: -curves[name].cpr)
    with house_style():
        figure, (axes,) = new_figure(8, 4.2)
        axes.axhspan(0.95, 1.05, color=FAINT, alpha=0.55, linewidth=0)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        for name, look in _looks(order, baselines).items():
            curve = curves[name]
            axes.plot([100 * x for x in curve.fractions], curve.faithfulness, markersize=4.5,
                      label=f"{name}  {curve.cpr:.3f}", **look)
        values = [f for curve in curves.values() for f in curve.faithfulness]
        axes.set(xscale="log", xlabel="edges kept (%)", ylabel="faithfulness", title=title,
                 ylim=(max(min(values, default=0), LOWEST) - 0.05, max(1.1, 1.05 * max(values, default=1))))
        axes.xaxis.set_major_formatter("{x:g}")
        _legend(axes, "area under the curve")
    return figure


def draw_latency_curve(points: Mapping[str, Sequence[Mapping[str, float]]], title: str = "Circuits for a latency",
                       metric: str = "KL from the dense model (nats)") -> Figure:
    """The ``value`` of circuits by a metric over the ``share`` of the dense latency, for each method.

    A point is what ``budgeted`` lists in ``provenance["curve"]``; where some have an ``accuracy`` (0 to 1) too, it has
    a panel of its own. A method of one point is a marker, of several a curve.
    """
    with_accuracy = any("accuracy" in point for circuits in points.values() for point in circuits)
    with house_style():
        figure, panels = new_figure(9.5 if with_accuracy else 6.5, 4, 1 + with_accuracy)
        for name, look in _looks(list(points), ()).items():
            ordered = sorted(points[name], key=lambda point: point["share"])
            look |= {"label": name, "markersize": 4.5 if len(ordered) > 1 else 7}
            _over_latency(panels[-1], [(point["share"], point["value"]) for point in ordered], look)
            if with_accuracy:
                _over_latency(panels[0], [(point["share"], 100 * point["accuracy"]) for point in ordered
                                          if "accuracy" in point], look)
        panels[0].set(title=title, ylabel="accuracy (%)")
        panels[-1].set(ylabel=metric, ylim=(0, None))
        for axes in panels:
            axes.set(xlabel="latency (% of the dense model's)")
        _legend(panels[-1], "")
    return figure


def _over_latency(axes: Axes, points: Sequence[tuple[float, float]], look: Mapping[str, object]) -> None:
    axes.plot([100 * share for share, _ in points], [value for _, value in points], **look)


def _looks(names: Sequence[str], baselines: Collection[str]) -> dict[str, dict[str, object]]:
    """Colour, line and marker of each curve: no two alike, also where colours look alike."""
    methods = [name for name in names if name not in baselines]
    looks = {name: {"color": _COLOURS[i % 5], "linestyle": _LINES[i // 5 % 3], "marker": _MARKERS[i % 6]}
             for i, name in enumerate(methods)}
    plain = {name: {"color": MUTED, "linestyle": _LINES[1 + i % 2], "marker": "x+"[i % 2]}
             for i, name in enumerate(name for name in names if name in baselines)}
    return {name: (looks | plain)[name] for name in names}


def _legend(axes: Axes, title: str) -> None:
    """Beside the axes, where it covers no curve."""
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title=title or None, alignment="left")
