"""The journal runs every cell in order, stops when time is over, goes on where it stopped, and repeats nothing."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from experiments import __main__ as command
from experiments.cells import CELLS, cells_of
from experiments.journal import Cell, Journal, load_result
from experiments.judge import answers
from experiments.lab import Lab, Made
from experiments.sizes import FULL, SIZES, SMALL
from tests.experiments.tiny import TINY
from vitsparse import InputError


class FakeLab:
    """A lab whose models are empty files."""

    size = SMALL

    def __init__(self, out):
        self.out, self.timed = out, []

    def require(self, name):
        return Lab.require(self, name)

    def among(self, classes):
        return self

    def time(self, folder):
        self.timed.append(folder.name)
        return {"batches": {}}


@pytest.fixture
def made():
    """Names of the cells that were made, in order."""
    return []


@pytest.fixture
def journal(tmp_path, made):
    def cell(name, needs=()):
        def make(lab, folder):
            folder.mkdir(parents=True)
            (folder / "model.safetensors").touch()
            made.append(name)
            return Made({}, {"accuracy": 0.5, "flops": 1e6})

        return Cell(name, "test", make, needs)

    cells = (cell("a"), cell("b", needs=("a",)), cell("c", needs=("b",)))
    return Journal(cells, FakeLab(tmp_path / "out"), tmp_path / "results", "python -m experiments")


def test_cells_run_in_order_and_once(journal, made):
    journal.run()
    journal.run()
    assert made == journal.lab.timed == ["a", "b", "c"]
    assert not list(journal.open_cells())
    assert load_result(journal.results / "b.json")["command"] == "python -m experiments"


def test_no_cell_begins_when_time_is_over_and_the_next_run_goes_on(journal, made, capsys):
    journal.run(seconds=0)
    assert made == []
    assert "time is over before a" in capsys.readouterr().out
    journal.run_cell(journal.cells[0])
    journal.run()
    assert made == ["a", "b", "c"]


def test_a_lost_latency_is_measured_again_without_the_model_being_made_again(journal, made):
    journal.run()
    journal.forget(["a", "c"], kinds=[".latency"])
    assert "only the result is there" in "\n".join(journal.status())
    journal.run()
    assert made == ["a", "b", "c"]
    assert journal.lab.timed == ["a", "b", "c", "a", "c"]


def test_a_forgotten_cell_is_made_again(journal, made):
    journal.run()
    journal.forget(["b"])
    assert not (journal.lab.out / "b").exists()
    journal.run()
    assert made == ["a", "b", "c", "b"]


def test_a_model_that_is_gone_is_named_with_the_remedy_and_the_rest_goes_on(journal, made, capsys):
    journal.run_cell(journal.cells[0])
    (journal.lab.out / "a" / "model.safetensors").unlink()
    (journal.lab.out / "b").mkdir()
    (journal.lab.out / "b" / "model.safetensors").touch()
    assert journal.run() == ["b"]
    assert "--again a makes it anew" in capsys.readouterr().err
    assert made == ["a", "c"]


def test_unknown_cells_and_wrong_orders_are_refused(journal):
    with pytest.raises(InputError, match="no such cell"):
        journal.forget(["d"])
    with pytest.raises(InputError, match="out of order"):
        Journal(journal.cells[1:], journal.lab, journal.results, "")


@pytest.mark.parametrize("content", ["[]", '{"format": "vitsparse.experiments", "version": 2}'])
def test_a_foreign_file_is_no_result(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match="no result of an experiment"):
        load_result(tmp_path / "a.json")


def test_an_experiment_brings_what_it_starts_from():
    names = [cell.name for cell in cells_of("classes")]
    assert names[0] == "dense-own"
    assert all(name.startswith("classes") for name in names[1:])
    assert cells_of(None) == CELLS


def test_the_order_puts_first_what_is_needed_most():
    names = [cell.name for cell in CELLS]
    wanted = ["dense-seed", "dense-own", "operator", "operator+5", "dense-seed+5", "head", "head+5", "dense-own+5",
              "budgeted-0.5", "budgeted-0.33", "magnitude-0.5", "importance-0.5", "smaller-0.5", "classes-dense"]
    assert names[: len(wanted)] == wanted


def test_every_cell_works(tmp_path):
    """All of them for real, on random images; rows say what was made, and answers can be paired.

    One cell's library may be missing, which ends no run.
    """
    journal = Journal(CELLS, Lab(TINY, None, tmp_path / "out", "cpu"), tmp_path / "results", "command")
    without = [] if find_spec("torch_pruning") else ["torch-pruning-0.5", "torch-pruning-0.33"]
    assert journal.run() == without
    rows = {cell.name: load_result(journal.file(cell))["row"] for cell in CELLS if cell.name not in without}
    for name, row in rows.items():
        assert answers(row).mean() == pytest.approx(row["accuracy"]), name
    assert rows["dense-own"]["S"] == 1
    assert rows["operator"]["edges"] == 14 + 42 * 4
    assert 0.9 < rows["smaller-0.5"]["flops"] / rows["budgeted-0.5"]["flops"] < 1.5
    assert rows["budgeted-0.75"]["flops"] < rows["dense-own"]["flops"]
    latency = load_result(journal.file(CELLS[0], ".latency"))
    assert latency["batches"]["1"]["strongest"] in latency["batches"]["1"]["dense"]
    assert latency["loop"]["images"] == rows["dense-seed"]["images"]


def test_a_rehearsal_needs_no_images_and_keeps_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SIZES, "small", TINY)
    assert command.main(["--dry-run", "--results", str(tmp_path / "results")], "seed_table") == 0
    assert "head+5" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_run_without_images_is_refused(tmp_path, capsys):
    assert command.main(["--out", str(tmp_path), "--results", str(tmp_path)]) == 2
    assert "--data" in capsys.readouterr().err


def test_results_are_forgotten_only_where_they_can_be_made_anew(tmp_path, monkeypatch):
    """Without images nothing is; a latency stays where its model is not here."""
    monkeypatch.setattr(Journal, "run", lambda journal, seconds: [])
    results, out = tmp_path / "results/small", tmp_path / "out"
    files = [results / f"{cell}{kind}.json" for cell in ("dense-seed", "dense-own") for kind in ("", ".latency")]
    (out / "dense-own").mkdir(parents=True)
    results.mkdir(parents=True)
    for file in (*files, out / "dense-own/model.safetensors"):
        file.touch()
    where = ["--out", str(out), "--results", str(results.parent)]
    for option in (["--time-again"], ["--again", "dense-own"]):
        command.main([*where, *option, "--status"])
        assert command.main([*where, *option]) == 2
        assert all(file.exists() for file in files)
    assert command.main([*where, "--data", str(tmp_path), "--time-again"]) == 0
    assert [file for file in files if not file.exists()] == [results / "dense-own.latency.json"]
    assert command.main([*where, "--data", str(tmp_path), "--again", "dense-seed"]) == 0
    assert [file for file in files if file.exists()] == [results / "dense-own.json"]


def test_sizes_are_plain_values():
    for size in (SMALL, FULL):
        assert json.loads(json.dumps(size.to_dict())) == size.to_dict()
        assert size.shrunk().model == size.model
