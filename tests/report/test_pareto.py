"""Accuracy over speed: every model is where it was measured, and looks like its method."""

from __future__ import annotations

import pytest

from vitsparse.report import Level, Mark, draw_pareto, style

to_hex = pytest.importorskip("matplotlib.colors", reason="figures are drawn with matplotlib").to_hex
LEVEL = Level("dense", (0.48, 0.5, 0.52), {"eager": 0.5, "openvino": 1.0})


def mark(series: str, speed: float, accuracy: float, **more) -> Mark:
    return Mark(series, (0.9 * speed, speed, 1.2 * speed), (accuracy - 0.02, accuracy, accuracy + 0.03), **more)


@pytest.fixture
def axes():
    marks = [mark("ours", 3, 0.45, note="S 3.1"), mark("ours", 2, 0.49, note="S 2.1"),
             mark("ours", 2.1, 0.47, minor=True), mark("theirs", 2, 0.4)]
    return draw_pareto({"batch 1": (LEVEL, marks), "batch 32": (LEVEL, marks[:2])}, lines=["ours"]).axes


def test_a_line_joins_one_method_in_the_order_of_speed_and_leaves_out_repetitions(axes):
    (joined,) = (line for line in axes[0].lines if line.get_linestyle() == "-")
    assert joined.get_xdata().tolist() == [2, 3]
    assert joined.get_ydata().tolist() == pytest.approx([49, 45])


def test_error_bars_reach_from_low_to_high(axes):
    container = axes[0].containers[0]
    across, up = (bars.get_segments()[0] for bars in container.lines[2])
    assert across[:, 0] == pytest.approx([1.8, 2.4])
    assert up[:, 1] == pytest.approx([47, 52])
    assert len(axes[0].containers) == 3  # a repetition has none


def test_methods_differ_in_marker_and_only_joined_ones_are_filled(axes):
    first = {bars.get_label(): bars.lines[0] for bars in axes[0].containers}
    ours, theirs = first["ours"], first["theirs"]
    assert ours.get_marker() != theirs.get_marker()
    assert (to_hex(ours.get_markerfacecolor()).upper(), theirs.get_markerfacecolor()) == (style.BLUE, "white")


def test_panels_share_their_axes_and_all_is_named(axes):
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert [place.get_title(loc="left") for place in axes] == ["batch 1", "batch 32"]
    assert {text.get_text() for text in axes[0].texts} >= {"eager", "openvino", "S 2.1", "S 3.1"}
    names = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert sorted(names) == ["dense: 95 % interval", "ours", "ours, other random seeds", "theirs"]
