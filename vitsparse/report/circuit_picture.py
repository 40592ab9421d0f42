"""The circuit as a layered graph: layers from left to right, heads above, MLPs below, edges between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..circuit.circuit import Circuit
from ..circuit.graph import Graph, Reader, Sender
from ..circuit.liveness import of_stream, reaches_logits
from ..circuit.operator import OPERATOR
from .style import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, house_style, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {"input": GREEN, "head": BLUE, "attn": BLUE, "mlp": ORANGE}
_CURVE_POINTS = 24
_LAYER_WIDTH, _NODE_HEIGHT, _MLP_SHIFT = 2.0, 0.75, 0.9
Point = tuple[float, float]


@dataclass(frozen=True)
class _Layout:
    """Where everything is, in data units: ``senders`` [S] in graph order, ``ports[reader]`` where its edges end."""

    senders: list[Point]
    ports: dict[str, Point]
    bars: list[tuple[float, float, float]]
    logits: Point
    height: float


def draw_circuit(circuit: Circuit, title: str = "") -> Figure:
    """Kept edges in the colour of their sender, cut edges faint behind them, dashed where they lead only to dead nodes.

    Nodes: filled where live, hollow and grey where dead (no path to ``logits``), hollow diamonds where constant (no
    path from ``input``). Lines get thinner and lighter the more there are, so that ten edges and
    five thousand both read. Of a circuit of operators the picture shows the sub-blocks: which of them still reach
    which; attentions that weigh all tokens alike are hollow.
    """
    shown = Circuit(*of_stream(circuit.graph, circuit.keep))
    graph = shown.graph
    layout = _lay_out(graph)
    with house_style():
        width = min(max(9.0, 3.0 + 0.8 * _LAYER_WIDTH * graph.depth), 18.0)
        figure, (axes,) = new_figure(width, min(2.2 + 0.6 * layout.height, 10.0))
        _draw_edges(axes, shown, layout)
        _draw_nodes(axes, circuit, layout)
        _label(axes, circuit, layout, title)
    return figure


def _lay_out(graph: Graph) -> _Layout:
    """Heads of a layer stand above the middle line, its MLP (groups) below and a little to the right."""
    heads, groups = graph.writers_per_attention, graph.mlp_groups
    senders: list[Point] = []
    for node in graph.sender_nodes:
        x = node.layer * _LAYER_WIDTH
        if node.kind == "input":
            senders.append((-0.85 * _LAYER_WIDTH, 0.0))
        elif node.kind == "mlp":
            senders.append((x + _MLP_SHIFT, -_NODE_HEIGHT * (node.index + 0.9)))
        else:
            senders.append((x, _NODE_HEIGHT * (heads - node.index - 0.1)))
    logits = ((graph.depth - 0.15) * _LAYER_WIDTH, 0.0)
    ports, bars = {}, []
    for reader in graph.reader_nodes:
        ports[reader.name], bar = _port(reader, [senders[i] for i in reader.drives], logits)
        if bar:
            bars.append(bar)
    return _Layout(senders, ports, bars, logits, _NODE_HEIGHT * (heads + groups + 1))


def _port(reader: Reader, driven: list[Point], logits: Point) -> tuple[Point, tuple[float, float, float] | None]:
    """The point where a reader's edges end; a reader of several nodes is a bar in front of them."""
    if not driven:
        return (logits[0] - 0.12, logits[1]), None
    x, low, high = driven[0][0], min(y for _, y in driven), max(y for _, y in driven)
    offset = {"q": 0.12, "v": -0.12}.get(reader.kind, 0.0)
    if len(driven) == 1:
        return (x - 0.13, low + offset), None
    return (x - 0.26, (low + high) / 2), (x - 0.24, low - 0.16, high + 0.16)


def _edges(graph: Graph) -> Iterator[tuple[int, Sender, Reader, int]]:
    """(edge, sender, reader, position of the sender) in canonical order."""
    for reader in graph.reader_nodes:
        for position in range(reader.fan_in):
            yield reader.first_edge + position, graph.sender_nodes[position], reader, position


def _draw_edges(axes: Axes, circuit: Circuit, layout: _Layout) -> None:
    from matplotlib.collections import LineCollection

    kept: dict[str, list[np.ndarray]] = {color: [] for color in (GREEN, BLUE, ORANGE)}
    cut, idle, alive = [], [], reaches_logits(circuit.graph, circuit.keep)
    for edge, sender, reader, position in _edges(circuit.graph):
        curve = _curve(layout.senders[position], layout.ports[reader.name])
        if not circuit.keep[edge]:
            cut.append(curve)
        elif reader.drives and not alive[list(reader.drives)].any():
            idle.append(curve)
        else:
            kept[_COLORS[sender.kind]].append(curve)
    # Rasterised, because thousands of faint curves would make the SVG larger than everything else together.
    axes.add_collection(LineCollection(cut, colors=FAINT, linewidths=0.5, alpha=_alpha(len(cut), 0.7, 0.12), zorder=1,
                                       rasterized=True, label="cut"))
    count = sum(map(len, kept.values()))
    look = {"linewidths": float(np.clip(12 / math.sqrt(count + 1), 0.35, 1.4)), "alpha": _alpha(count, 0.85, 0.1),
            "zorder": 2, "rasterized": count > 2000}
    axes.add_collection(LineCollection(idle, colors=MUTED, linestyles=(0, (4, 3)), label="leads nowhere",
                                       **{**look, "linewidths": 0.6 * look["linewidths"]}))
    for color, curves in kept.items():
        axes.add_collection(LineCollection(curves, colors=color, label="kept", **look))


def _alpha(count: int, most: float, least: float) -> float:
    """Opacity that keeps the total amount of ink about the same."""
    return float(np.clip(8 / math.sqrt(count + 1), least, most))


def _curve(start: Point, end: Point) -> np.ndarray:
    """[points, 2]: a cubic Bezier that leaves and arrives horizontally, bowed away from the nodes it passes."""
    (x0, y0), (x1, y1) = start, end
    x0 += 0.13
    reach = max(0.5 * (x1 - x0), 0.25)
    span = (x1 - x0) / _LAYER_WIDTH
    # Between nodes of one lane a straight line would run through every node between them.
    bow = 0.16 * _NODE_HEIGHT * max(span - 1, 0) ** 0.5 * (1 if y0 + y1 >= 0 else -1) if y0 * y1 >= 0 else 0.0
    control = np.array([(x0, y0), (x0 + reach, y0 + 2 * bow), (x1 - reach, y1 + 2 * bow), (x1, y1)])
    t = np.linspace(0, 1, _CURVE_POINTS)[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    return weights @ control


def _draw_nodes(axes: Axes, circuit: Circuit, layout: _Layout) -> None:
    states = {name: state for state in ("dead", "constant", "uniform") for name in getattr(circuit, state)}
    for node, (x, y) in zip(circuit.graph.sender_nodes, layout.senders, strict=True):
        style = _node_style(_COLORS[node.kind], states.get(node.name, "live"))
        axes.plot(x, y, linestyle="none", zorder=4, gid=node.name, **style)
    axes.plot(*layout.logits, linestyle="none", marker="s", markersize=9, color=INK, zorder=4, gid="logits")
    for x, low, high in layout.bars:
        axes.plot([x, x], [low, high], color=MUTED, linewidth=1.6, solid_capstyle="round", zorder=3)


def _node_style(color: str, state: str) -> dict[str, object]:
    if state == "dead":
        return {"marker": "o", "markersize": 6.5, "markerfacecolor": "white", "markeredgecolor": "#B8B8B8"}
    if state in ("constant", "uniform"):
        return {"marker": "D" if state == "constant" else "o", "markersize": 6.5, "markerfacecolor": "white",
                "markeredgecolor": color, "markeredgewidth": 1.6}
    return {"marker": "o", "markersize": 8.5, "markerfacecolor": color, "markeredgecolor": "white",
            "markeredgewidth": 0.8}


def _label(axes: Axes, circuit: Circuit, layout: _Layout, title: str) -> None:
    graph = circuit.graph
    top = _NODE_HEIGHT * (graph.writers_per_attention + 0.2)
    low = -_NODE_HEIGHT * (graph.mlp_groups + 0.4)
    for layer in range(graph.depth):
        axes.text((layer + 0.22) * _LAYER_WIDTH, low - 0.3, f"layer {layer}", ha="center", va="top", color=MUTED)
    (x, y), (end, middle) = layout.senders[0], layout.logits
    for position, node in enumerate(graph.sender_nodes):
        if node.layer == 0 and node.kind in ("head", "mlp") and (node.kind == "head" or graph.mlp_groups > 1):
            place = layout.senders[position]
            axes.text(place[0] - 0.42, place[1] + 0.06, node.name.partition(".")[2], ha="right", color=MUTED,
                      fontsize=8, zorder=5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    axes.text(x, y - 0.25, "input", ha="center", va="top")
    axes.text(end, middle - 0.25, "logits", ha="center", va="top")
    axes.set_title(title or "Circuit", pad=24)
    axes.text(0, 1.0, _summary(circuit), transform=axes.transAxes, color=MUTED, va="bottom")
    axes.set(xlim=(x - 0.5, end + 0.5), ylim=(low - 0.75, top + 0.45))
    axes.set_axis_off()
    handles = _legend(graph)
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.02), columnspacing=1.4,
                ncols=len(handles) if graph.depth > 4 else 5, handletextpad=0.5)


def _summary(circuit: Circuit) -> str:
    """Counts of edges and nodes, in words."""
    graph, dead, constant = circuit.graph, set(circuit.dead), set(circuit.constant)
    parts = [f"{circuit.num_kept:,} of {graph.num_edges:,} edges kept ({circuit.num_kept / graph.num_edges:.1%})"]
    kinds = {"head": "heads", "attn": "attentions", "mlp": "MLPs" if graph.mlp_groups == 1 else "MLP groups"}
    for kind, plural in kinds.items():
        names = {node.name for node in graph.sender_nodes if node.kind == kind}
        if names:
            gone, fixed, even = len(names & dead), len(names & constant), len(names & set(circuit.uniform))
            states = [f"{len(names) - gone - fixed} of {len(names)} {plural} live"]
            states += [f"{even} of them uniform"] * (even > 0)
            states += [f"{fixed} constant"] * (fixed > 0) + [f"{gone} dead"] * (gone > 0)
            parts.append(", ".join(states))
    return "   ·   ".join(parts)


def _legend(graph: Graph) -> list:
    from matplotlib.lines import Line2D

    attention = "attention" if graph.granularity in ("block", OPERATOR) else "head"
    mlp = "MLP" if graph.mlp_groups == 1 else "MLP group"
    nodes = [(attention, BLUE, "live"), (mlp, ORANGE, "live"), ("constant", MUTED, "constant"), ("dead", MUTED, "dead")]
    if graph.granularity == OPERATOR:
        nodes.insert(1, ("uniform attention", BLUE, "uniform"))
    handles = [Line2D([], [], linestyle="none", label=label, **_node_style(color, state))
               for label, color, state in nodes]
    lines = (("from input", GREEN, "-"), (f"from {attention}", BLUE, "-"), (f"from {mlp}", ORANGE, "-"),
             ("leads nowhere", MUTED, "--"), ("cut", FAINT, "-"))
    return handles + [Line2D([], [], color=color, linestyle=style, linewidth=1.4, label=label)
                      for label, color, style in lines]
