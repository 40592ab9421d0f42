"""The table of the model benchmarks: ratios, verdicts, the file that keeps the rows, and what the README shows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks.model import __main__ as command
from benchmarks.model.candidates import Candidates, threads_of
from benchmarks.model.results import line, load, misses, readme, store
from benchmarks.model.targets import ROWS, Row, compare
from tests.tolerances import error
from vitsparse import InputError

SPEED = Row("half vs D", "half", "D", {1: (1.85, 2.0)})
PRICE = Row("mixed vs half", "mixed", "half", {1: (1.2, 1.1)}, price=True)
TIMES = {"D slow": np.array([9.0, 9.0, 9.0]), "D fast": np.array([4.0, 2.0, 6.0]), "half": np.array([2.0, 1.0, 4.0]),
         "mixed": np.array([2.3, 1.15, 4.6])}


def row_of(row: Row, batch: int = 1) -> dict:
    (found,) = compare((row,), batch, TIMES)
    return found


def test_ratios_are_taken_within_a_round_against_the_fastest_rival():
    found = row_of(SPEED)
    assert found["theirs"] == "D fast"
    assert (found["ratio"], found["ratio_of_medians"], found["n"]) == (2.0, 2.0, 3)
    assert (found["p20"], found["p80"]) == (1.7, 2.0)
    assert (found["met"], found["aim_met"]) == (True, True)


def test_a_price_is_to_be_small():
    found = row_of(PRICE)
    assert (found["ratio"], found["met"], found["aim_met"]) == (1.15, True, False)
    assert "target <= 1.2 met, aim 1.1 missed" in line(found)


def test_a_bound_is_not_reached_by_rounding():
    assert SPEED.met(1.8499, 1.85) is False
    assert PRICE.met(1.2001, 1.2) is False


def test_without_a_bound_nothing_is_missed():
    found = row_of(SPEED, batch=32)
    assert (found["target"], found["met"]) == (None, None)
    assert misses([found, row_of(PRICE)]) == []


def test_every_row_names_candidates_that_exist():
    names = dict.fromkeys(Candidates("vit_tiny_imagenet_p8_d256_l12_h8", 1).names())
    assert all(row.ours in names and row.rivals(names) for row in ROWS)


def test_rows_are_kept_section_by_section_and_become_the_table(tmp_path):
    file = tmp_path / "rows.json"
    machine = {"cpu": "x", "threads": 2, "torch": "2", "date": "2026-01-01T", "commit": "c"}
    times = [{"kind": "time", "model": "vit_m", "batch": 1, "name": name, "ms": ms} for name, ms in
             (("D openvino", 7.0), ("half", 2.0))]
    missed = {**row_of(PRICE), "met": False}
    store(file, "memory", {"machine": machine, "rows": [{"kind": "memory", "ratio": 2}]})
    store(file, "latency", {"machine": machine, "rows": [row_of(SPEED)]})
    store(file, "latency", {"machine": machine, "rows": [row_of(SPEED), missed, *times]})
    assert load(file)["memory"]["rows"] == [{"kind": "memory", "ratio": 2}]
    text = readme(file)
    assert "| half vs D | 2.00 times as fast [1.70, 2.00] |" in text
    assert "| mixed vs half | 1.15 of the time [1.15, 1.15], target 1.2 missed |" in text
    assert "| m, 1 | 7 | 2 (3.5x) |" in text


def test_other_files_are_refused(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"format": "other"}))
    with pytest.raises(InputError, match="no file of benchmark results"):
        readme(file)


@torch.inference_mode()
def test_candidates_compute_the_same_and_say_their_threads():
    """The nodes of ``half`` removed and compiled, and *edges50* masked and compiled."""
    candidates = Candidates("vit_digits_p2_d64_l6_h4", 2)
    for ours, theirs in (("half", "C half"), ("edges50", "E eager"), ("full", "D eager")):
        if ours == "half":
            pytest.importorskip("openvino", reason="OpenVINO is not installed")
        runs = candidates.make(ours), candidates.make(theirs)
        found = [run() for run in runs]
        found = [value if isinstance(value, torch.Tensor) else torch.from_numpy(value[0]) for value in found]
        assert error(found[0], found[1]) < 1e-4
        assert [threads_of(run) for run in runs] == [torch.get_num_threads()] * 2


def test_a_section_runs_alone_prints_its_rows_and_keeps_them(tmp_path, monkeypatch, capsys):
    rows = [row_of(PRICE), {**row_of(SPEED), "met": False}]
    monkeypatch.setitem(command.SECTIONS, "latency", lambda *, quick: iter(rows))
    threads = torch.get_num_threads()
    command.main(["latency", "--threads", str(threads), "--out", str(tmp_path / "rows.json")])
    printed = capsys.readouterr().out
    assert printed.count("MISSED") == 2  # in its place, and among the misses
    assert "1 missed:" in printed
    assert load(tmp_path / "rows.json")["latency"]["rows"] == rows


@pytest.mark.parametrize("arguments", [["latencies"], ["--threads", "0"], ["--readme", "nowhere.json"]])
def test_what_cannot_be_done_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert "error:" in capsys.readouterr().err
