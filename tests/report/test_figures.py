"""Figures: drawn from small values, they hold what they should, and nothing else in the process changes."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from PIL import Image

from vitsparse.circuit import Circuit, Graph
from vitsparse.errors import InputError
from vitsparse.evaluation.faithfulness import Curve
from vitsparse.report import (
    draw_circuit,
    draw_curves,
    draw_faithfulness,
    draw_gradient_flow,
    draw_latency_curve,
    save_figure,
    style,
)
from vitsparse.training import EpochRow, GradientRow


def epochs(count: int, validated: bool = True) -> list[EpochRow]:
    return [EpochRow(i, 10 * (i + 1), 1e-3 / (i + 1), 2 / (i + 1), 1 - 1 / (i + 2),
                     2.5 / (i + 1) if validated else None, 0.9 if validated else None, 1.0, 100.0, 0)
            for i in range(count)]


def gradients(steps: int, layers: tuple[str, ...] = ("patch_embed", "blocks.0.attn", "head")) -> list[GradientRow]:
    return [GradientRow(10 * step, layer, 10.0 ** -(3 + i), 10.0 ** -(2 + i)) for step in range(steps)
            for i, layer in enumerate(layers)]


def random_circuit(graph: Graph, share: float, seed: int = 0) -> Circuit:
    return Circuit(graph, np.random.default_rng(seed).random(graph.num_edges) < share)


def collection(figure, name: str):
    """All line collections of that name of the only axes."""
    return [part for part in figure.axes[0].collections if part.get_label() == name]


def count(figure, name: str) -> int:
    return sum(len(part.get_segments()) for part in collection(figure, name))


def marker(figure, node: str):
    return next(line for line in figure.axes[0].lines if line.get_gid() == node)


def test_curves_show_the_values_and_the_last_of_them():
    figure = draw_curves(epochs(5), "Dense")
    loss, accuracy, rate = figure.axes
    assert [line.get_xdata().tolist() for line in loss.lines] == [[1, 2, 3, 4, 5]] * 2
    assert accuracy.lines[0].get_ydata()[-1] == pytest.approx(100 * (1 - 1 / 6))
    names = [text.get_text() for text in loss.get_legend().get_texts()]
    assert names == ["training, last 0.400", "validation, last 0.500"]
    assert rate.lines[0].get_ydata()[0] == 1e-3


def test_curves_without_validation_have_one_line_and_one_epoch_is_a_point():
    figure = draw_curves(epochs(1, validated=False))
    assert [len(axes.lines) for axes in figure.axes] == [1, 1, 1]
    assert figure.axes[0].lines[0].get_marker() == "o"


def test_gradient_map_has_a_cell_for_every_layer_and_update():
    figure = draw_gradient_flow(gradients(4))
    mesh = figure.axes[0].collections[0]
    assert mesh.get_array().shape == (3, 4)
    assert mesh.get_array()[2, 0] == pytest.approx(1e-5)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["patch_embed", "blocks.0.attn", "head"]


@pytest.mark.parametrize("rows", [gradients(1), [GradientRow(0, "head", 0.0, 0.0)],
                                  gradients(2, tuple(f"layer{i}" for i in range(40)))], ids=["one", "zero", "many"])
def test_gradient_map_of_one_update_of_zeros_and_of_many_layers(rows, tmp_path):
    assert all(path.stat().st_size > 1000 for path in save_figure(draw_gradient_flow(rows), tmp_path / "flow"))


@pytest.mark.parametrize("graph", [Graph(3, 4), Graph(2, 2, "qkv"), Graph(3, 4, "layer"), Graph(3, 4, "block"),
                                   Graph(2, 3, "head", 4)], ids=repr)
def test_every_edge_is_drawn_once(graph):
    circuit = random_circuit(graph, 0.5)
    figure = draw_circuit(circuit)
    assert count(figure, "kept") + count(figure, "leads nowhere") == circuit.num_kept
    assert count(figure, "cut") == graph.num_edges - circuit.num_kept


def test_nodes_look_dead_constant_or_live():
    graph = Graph(2, 2)
    cut = {"a0.h0->m0", "a0.h0->a1.h0", "a0.h0->a1.h1", "a0.h0->m1", "a0.h0->logits", "input->a0.h1"}
    circuit = Circuit(graph, [name not in cut for name in graph.edge_names])
    assert circuit.dead == ("a0.h0",)
    assert circuit.constant == ("a0.h1",)
    figure = draw_circuit(circuit)
    assert marker(figure, "a0.h0").get_markerfacecolor() == "white"
    assert (marker(figure, "a0.h1").get_marker(), marker(figure, "a1.h0").get_marker()) == ("D", "o")
    assert marker(figure, "a1.h0").get_markerfacecolor() == style.BLUE
    assert count(figure, "leads nowhere") == 1  # input->a0.h0
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert f"{circuit.num_kept} of {graph.num_edges} edges kept" in texts
    assert "2 of 4 heads live, 1 constant, 1 dead" in texts


def test_of_operators_the_sub_blocks_are_drawn():
    graph = Graph(2, 3, "operator")
    cut = {"b0.q->b0.matmul", "b0.add->b0.norm2", "b1.in->b1.add", "b1.fc2->b1.drop2"}
    figure = draw_circuit(Circuit(graph, [name not in cut for name in graph.edge_names]))
    looks = {name: (marker(figure, name).get_marker(), marker(figure, name).get_markerfacecolor())
             for name in ("a0", "m0", "a1", "m1")}
    assert looks == {"a0": ("o", "white"), "m0": ("D", "white"), "a1": ("o", style.BLUE), "m1": ("o", "white")}
    assert marker(figure, "a0").get_markeredgecolor() == style.BLUE != marker(figure, "m1").get_markeredgecolor()
    assert (count(figure, "kept"), count(figure, "leads nowhere")) == (5, 1)  # all into a0 and a1, a1->logits; a1->m1
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "94 of 98 edges kept" in texts
    assert "2 of 2 attentions live, 1 of them uniform" in texts


def test_readers_of_several_nodes_are_bars():
    bars = {graph: sum(len(line.get_xdata()) == 2 for line in draw_circuit(Circuit.full(graph)).axes[0].lines)
            for graph in (Graph(3, 2), Graph(3, 2, "layer"), Graph(3, 2, "head", 4), Graph(3, 2, "layer", 4))}
    assert list(bars.values()) == [0, 3, 3, 6]


def test_more_edges_are_fainter_and_thinner():
    few, many = (collection(draw_circuit(Circuit.full(graph)), "kept")[0] for graph in (Graph(2, 2), Graph(12, 8)))
    assert many.get_alpha() < few.get_alpha()
    assert many.get_linewidth()[0] < few.get_linewidth()[0]


def faithfulness(values: tuple[float, float, float]) -> Curve:
    """A curve over fractions 0.01, 0.1 and 1 with these f."""
    return Curve("kl", (0.01, 0.1, 1.0), (1, 10, 100), tuple(1 - f for f in values), empty=1.0, full=0.0)


def test_faithfulness_is_drawn_best_first_with_baselines_in_grey_and_a_floor():
    curves = {"random": faithfulness((0, -9.0, 1)), "eap": faithfulness((0.2, 0.5, 1)),
              "exact": faithfulness((0.3, 0.9, 1))}
    axes = draw_faithfulness(curves).axes[0]
    labels = [text.get_text().split() for text in axes.get_legend().get_texts()]
    assert labels == [[name, f"{curves[name].cpr:.3f}"] for name in ("exact", "eap", "random")]
    lines = {line.get_label().split()[0]: line for line in axes.lines}
    assert lines["eap"].get_xdata().tolist() == [1, 10, 100]
    assert lines["eap"].get_ydata().tolist() == pytest.approx([0.2, 0.5, 1])
    assert lines["random"].get_color() == style.MUTED != lines["eap"].get_color()
    assert axes.get_ylim()[0] == pytest.approx(-0.55)
    assert axes.get_xscale() == "log"


def test_no_two_of_many_methods_look_alike():
    axes = draw_faithfulness({f"method{i}": faithfulness((0, i / 12, 1)) for i in range(12)}).axes[0]
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}
    assert len(looks) == 13  # and the line at zero


def test_latency_curves_have_all_points_in_the_order_of_latency():
    points = {"budgeted": [{"share": x, "value": 1 - x, "accuracy": x / 2, "edges": 7} for x in (1.0, 0.25, 0.5)],
              "acdc": [{"share": 0.75, "value": 2.0}]}
    accuracy, divergence = draw_latency_curve(points).axes
    assert [line.get_xdata().tolist() for line in accuracy.lines] == [[25, 50, 100], []]
    assert accuracy.lines[0].get_ydata().tolist() == [12.5, 25, 50]
    assert divergence.lines[0].get_ydata().tolist() == [0.75, 0.5, 0]
    assert [line.get_xdata().tolist() for line in divergence.lines] == [[25, 50, 100], [75]]
    assert [text.get_text() for text in divergence.get_legend().get_texts()] == ["budgeted", "acdc"]
    assert len(draw_latency_curve({"acdc": points["acdc"]}).axes) == 1


def test_files_are_whole_equal_when_drawn_again_and_of_the_full_graph(tmp_path):
    circuit = random_circuit(Graph(3, 4), 0.4)
    first, second = (save_figure(draw_circuit(circuit), tmp_path / name) for name in "ab")
    assert [path.name for path in first] == ["a.png", "a.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with Image.open(first[0]) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
    assert ET.parse(first[1]).getroot().tag.endswith("svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.png", "b.svg"]


def test_drawing_leaves_no_trace_in_matplotlib():
    before = dict(matplotlib.rcParams)
    draw_circuit(Circuit.full(Graph(2, 2)))
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"vitsparse\[report\]"):
        draw_curves(epochs(2))


def test_curves_of_edges_start_and_end_where_they_should():
    figure = draw_circuit(Circuit.full(Graph(1, 1, "block")))
    ends = [segment[-1] for part in collection(figure, "kept") for segment in part.get_segments()]
    starts = [segment[0] for part in collection(figure, "kept") for segment in part.get_segments()]
    assert all(end[0] > start[0] for start, end in zip(starts, ends, strict=True))
    assert all(math.isfinite(value) for point in starts + ends for value in point)
