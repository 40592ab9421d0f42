"""What people read of the experiments says what the result files say, and only that."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from experiments.judge import answers
from experiments.report import headline
from experiments.report.__main__ import HOME, Report, main
from experiments.report.findings import Findings, command
from experiments.report.targets import at_least, table
from tests.experiments import made_up
from vitsparse.errors import InputError
from vitsparse.evaluation.intervals import paired_difference, share_interval


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> Path:
    """A folder with the committed page, made-up results of the small size and what is made of them."""
    folder = tmp_path_factory.mktemp("reported")
    shutil.copy(HOME / "README.md", folder / "README.md")
    made_up.write(folder / "results", "small")
    Report.of(folder, ["small", "full"]).write()
    return folder


@pytest.fixture
def mine(reported, tmp_path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(reported, tmp_path / "mine"))


def part(folder: Path, name: str, size: str = "small") -> str:
    page = (folder / "README.md").read_text()
    return re.search(rf"<!-- generated: {name} {size} -->\n(.*?)<!-- end -->", page, re.DOTALL)[1]


def rows(folder: Path, name: str, size: str = "small") -> list[dict[str, str]]:
    """The lines of a table by column."""
    titles, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")]
                         for line in part(folder, name, size).splitlines() if line.startswith("|")]
    return [dict(zip(titles, line, strict=True)) for line in lines]


def result(folder: Path, cell: str, kind: str = "") -> dict:
    return json.loads((folder / "results/small" / f"{cell}{kind}.json").read_text())


def changed(folder: Path, cell: str, change, kind: str = "") -> None:
    """A result file with one thing changed in place."""
    found = result(folder, cell, kind)
    change(found)
    (folder / "results/small" / f"{cell}{kind}.json").write_text(json.dumps(found))


def test_what_is_committed_is_what_the_results_say(capsys):
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_a_typed_number_is_found_and_mended(mine, capsys):
    page = mine / "README.md"
    original = page.read_text()
    page.write_text(original.replace("52.00 %", "53.00 %"))
    assert main(["--check", "--folder", str(mine)]) == 1
    assert capsys.readouterr().out.split() == ["stale:", str(page)]
    assert main(["--folder", str(mine)]) == 0
    assert page.read_text() == original
    assert main(["--check", "--folder", str(mine)]) == 0


def test_a_changed_result_makes_stale_what_shows_it(mine):
    changed(mine, "budgeted-0.5", lambda found: found["batches"]["1"]["speedup"].update(p50=9.87), ".latency")
    stale = {str(path.relative_to(mine)) for path in Report.of(mine, ["small"]).stale()}
    assert stale == {"README.md", "pareto/results-small.csv", "pareto/results-small.json", "pareto/pareto-small.svg"}


def test_a_cell_of_the_table_has_the_numbers_of_its_file(reported):
    ours, base = (result(reported, cell)["row"] for cell in ("budgeted-0.5", "dense-own+5"))
    value, low, high = (100 * x for x in paired_difference(answers(ours), answers(base)))
    single = [100 * x for x in share_interval(answers(ours))]
    row = next(row for row in rows(reported, "pareto") if row["budget"] == "0.5" and row["random seed"] == "0")
    assert row["method"] == "budgeted"
    assert row["accuracy [95 %]"] == f"{100 * ours['accuracy']:.2f} % [{single[0]:.1f}, {single[1]:.1f}]"
    assert row["points above `dense-own+5` [95 %]"] == f"{value:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")
    assert (row["zero in it"], row["S"]) == ("yes", "2.15")
    assert row["batch 1: times as fast [p20, p80]"] == "2.10 [2.04, 2.18]"
    assert row["batch 1: ms, and of the dense model"] == "0.714 cpu / 1.5 openvino"


def test_methods_stand_together_from_mild_to_hard(reported):
    found = [(row["method"], row["budget"], row["random seed"]) for row in rows(reported, "pareto")]
    assert found[:5] == [("`dense-own`", "–", "0"), ("`dense-own+5`", "–", "0"), ("budgeted", "0.75", "0"),
                         ("budgeted", "0.5", "0"), ("budgeted", "0.5", "1")]


def test_the_seed_projects_rows_stand_beside_ours(reported):
    quality = [(row["model"], row["whose"]) for row in rows(reported, "seed_table")]
    assert quality[2:5] == [("pruned", "seed project"), ("pruned", "`operator`"), ("pruned", "`head`")]
    theirs, ours = rows(reported, "seed_table")[2:4]
    assert (theirs["loss, sum over batches of 128"], theirs["accuracy [95 %]"]) == ("383.5", "33.00 %")
    loss = result(reported, "operator")["row"]["loss"]
    assert ours["loss, sum over batches of 128"] == f"{loss * 1600 / 128:.1f}"
    assert ours["points above the dense model [95 %]"].endswith("(`dense-seed`)")
    speed = rows(reported, "seed_speed")
    assert speed[2]["loop, of the dense model's"] == f"{100 * 59.87 / 61.31:.1f} % ({100 * 65.66 / 70.08:.1f} %)"
    dense, pruned = (result(reported, cell, ".latency")["loop"] for cell in ("dense-seed", "operator"))
    share = 100 * pruned["model_s"]["p50"] / dense["model_s"]["p50"]
    assert speed[3]["model, of the dense model's"] == f"{share:.1f} %"


def test_of_two_recipes_the_table_shows_what_differs_and_no_more(reported):
    found = {row["setting"]: (row["the seed's recipe"], row["ours"]) for row in rows(reported, "recipes")}
    assert found["`recipe.optimizer`"] == ('"adamw"', '"muon"')
    assert "`recipe.epochs`" not in found


def test_several_random_seeds_become_mean_and_spread(reported):
    found = {(row["method"], row["budget"]): row for row in rows(reported, "seeds")}
    shares = [100 * result(reported, f"budgeted-0.5{seed}")["row"]["accuracy"] for seed in ("", "-seed1", "-seed2")]
    assert found.keys() == {("budgeted", "0.5"), ("budgeted", "0.33")}
    row = found["budgeted", "0.5"]
    assert (row["random seeds"], row["accuracy"]) == ("3", f"{np.mean(shares):.2f} ± {np.std(shares, ddof=1):.2f} %")


def test_the_dense_model_of_ten_classes_is_shown_before_and_after(reported):
    before, after, *circuits = rows(reported, "classes")
    assert (before["model"], after["model"]) == ("dense, of all classes", "dense, trained on them")
    assert before["accuracy [95 %]"].split(" %")[0] + " %" == after["accuracy before fine-tuning"]
    assert [row["budget"] for row in circuits] == ["0.5", "0.33", "0.25", "0.15"]


def test_what_has_not_run_says_so_and_how_to_run_it(reported):
    for name, experiment in (("seed_table", "seed_table"), ("pareto", "pareto"), ("classes", "classes")):
        assert all("not yet run" in row.values() for row in rows(reported, name, "full")
                   if "seed project" not in row.values())
        assert f"`{command(experiment, 'full')}`" in part(reported, name, "full")
    assert "No picture" in part(reported, "pareto_picture", "full")
    assert not list(reported.rglob("*-full.*"))


def test_a_model_that_is_not_timed_yet_says_so(mine):
    (mine / "results/small/budgeted-0.75.latency.json").unlink()
    Report.of(mine, ["small"]).write()
    row = next(row for row in rows(mine, "pareto") if row["budget"] == "0.75")
    assert row["batch 1: times as fast [p20, p80]"] == "not yet timed"
    assert "Not yet timed: budgeted-0.75" in part(mine, "pareto")


def test_results_that_are_taken_back_take_their_files_with_them(mine):
    shutil.rmtree(mine / "results/small")
    report = Report.of(mine, ["small"])
    assert mine / "classes/classes-small.png" in report.stale()
    report.write()
    assert not list(mine.glob("*/*-small.*"))


def test_each_machine_and_commit_is_named_with_its_cells(mine):
    other = made_up.MACHINE | {"gpu": "Invented GPU", "commit": 4 * "fedcba9876" + "+dirty"}
    (mine / "results/small/classes-0.5.json").unlink()
    made_up.write(mine / "results", "small", {"classes-0.5"}, other)
    Report.of(mine, ["small"]).write()
    first, second = [line for line in part(mine, "classes").splitlines() if line.startswith("- ")]
    assert "commit 0123456789;" in first
    assert "made classes-dense, classes-0.33, classes-0.25, classes-0.15 in" in first
    assert "Invented GPU, Invented CPU, cores 2, threads 2" in second
    assert "commit fedcba9876+dirty; 2026-01-02; made classes-0.5 in" in second


def lines(found: Findings) -> dict[str, tuple[str, str]]:
    """Measured and met by target."""
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(found).splitlines()[2:]]
    return {target: (measured, met) for target, measured, met in split}


def test_targets_are_judged_over_all_random_seeds(reported):
    found = lines(Findings.load(reported / "results", "small"))
    assert found["S >= 2: no loss that a paired interval can tell from zero"][1] == "yes"
    assert found["S >= 3: within 1 point"][1] == "1 of 3"
    assert found["S >= 3: 2.6 times as fast at batch 32"][1] == "yes"
    assert found["how far S goes within 3 points"][0].startswith("S 3.40: `budgeted-0.33-seed2`")
    assert found["our recipe: no target at this size"][1] == "–"


def test_a_target_that_is_missed_says_no(mine):
    for seed in ("", "-seed1", "-seed2"):
        cell = f"budgeted-0.5{seed}"
        changed(mine, cell, lambda found: found["batches"]["32"]["speedup"].update(p50=1.84), ".latency")
        changed(mine, cell, lambda found: found["row"].update(right="00" * 200))
    found = lines(Findings.load(mine / "results", "small"))
    assert found["S >= 2: 1.85 times as fast (aim 2) at batch 32"][1] == "no"
    assert found["S >= 2: 1.85 times as fast (aim 2) at batch 1"][1] == "yes"
    assert found["S >= 2: no loss that a paired interval can tell from zero"][1] == "no"


def test_the_largest_budget_with_that_S_stands_for_it(reported):
    found = Findings.load(reported / "results", "small").of("pareto")
    ours = [one for one in found if one.kind()[0] == "budgeted"]
    assert [one.name for one in at_least(2, ours)] == ["budgeted-0.5", "budgeted-0.5-seed1", "budgeted-0.5-seed2"]
    assert [one.name for one in at_least(4, ours)] == ["budgeted-0.25"]
    assert at_least(5, ours) == []


@pytest.mark.parametrize(("gpu", "seconds", "met"), [("Invented GPU", 299.0, "yes"), ("Invented GPU", 301.0, "no"),
                                                     (None, 200.0, "–"), ("Invented GPU", 50.0, "–")])
def test_baselines_and_minutes_have_targets_at_full_size(tmp_path, gpu, seconds, met):
    """Without a GPU minutes say nothing, and 50 seconds for epochs of 100 are the last stay of several."""
    made_up.write(tmp_path, "full", {"dense-seed", "dense-own"}, made_up.MACHINE | {"gpu": gpu})
    found = Findings.load(tmp_path, "full")
    own = found["dense-own"]
    result = own.result | {"training": own.result["training"] | {"seconds_with_validation": seconds}}
    found = Findings(found.size, {**found.cells, "dense-own": dataclasses.replace(own, result=result)})
    judged = lines(found)
    assert judged["the seed's recipe: 36.25 %"][1] == judged["our recipe: 45.00 % (aim 50)"][1] == "yes"
    assert judged["full training on one GPU, data pipeline included: under 5 minutes"][1] == met


def test_the_front_page_tells_its_rows_apart_and_has_one_random_seed(reported):
    table = headline.table(Findings.load(reported / "results", "small")).splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:] if line.startswith("|")]
    assert len({row[0] for row in found}) == len(found) == 10
    own = found[2]
    assert own[:2] == ["our circuit, 50% of the predicted latency", "47%"]
    assert own[2].startswith(f"{100 * result(reported, 'budgeted-0.5')['row']['accuracy']:.2f} %")
    assert own[4] == "2.10 [2.04, 2.18]"
    assert "times as fast as openvino" in table[0]


def test_flat_rows_are_the_same_as_csv_and_json(reported):
    for experiment in ("seed_table", "pareto", "classes"):
        values = json.loads((reported / experiment / "results-small.json").read_text())
        with open(reported / experiment / "results-small.csv", newline="") as file:
            table = list(csv.DictReader(file))
        assert len(values) == len(table) > 5
        for row, line in zip(values, table, strict=True):
            assert {name: "" if value is None else str(value) for name, value in row.items()} == {
                name: line[name] for name in row}
    ours = next(row for row in values if row["cell"] == "classes-0.5")
    assert (ours["compared_with"], ours["budget"], ours["S"]) == ("classes-dense", 0.5, 2.1)
    assert "difference" not in next(row for row in values if row["cell"] == "dense-own")  # it answers to other images


def test_pictures_are_equal_when_drawn_again_and_readable(mine, reported):
    for drawn in Report.of(mine, ["small"]).pictures:
        drawn.save()
        for kind in ("png", "svg"):
            path = Path(f"{drawn.stem}.{kind}")
            assert path.read_bytes() == (reported / path.relative_to(mine)).read_bytes()
        assert ET.parse(f"{drawn.stem}.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize(("name", "change", "complaint"), [
    ("budgeted-0.5", {"size": "full"}, "something else than its name"),
    ("budgeted-0.5", {"cell": "head"}, "something else than its name"),
    ("budgeted-0.5.latency", {"format": "vitsparse.experiments"}, "something else than its name"),
    ("budgeted-0.5", {"version": 2}, "no result of an experiment")])
def test_files_of_something_else_are_refused(mine, name, change, complaint):
    path = mine / "results/small" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=complaint):
        Findings.load(mine / "results", "small")


def test_a_file_of_no_cell_is_refused(mine, capsys):
    shutil.copy(mine / "results/small/head.json", mine / "results/small/haed.json")
    assert main(["--check", "--folder", str(mine)]) == 2
    assert "did you mean 'head.json'?" in capsys.readouterr().err


@pytest.mark.parametrize(("old", "new", "complaint"), [
    ("generated: pareto small", "generated: prateo small", "does not show all parts"),
    ("<!-- generated: seeds full -->", "<!-- generated: sedes full -->\n<!-- end -->\n<!-- generated: seeds full -->",
     "nothing makes"),
    ("<!-- generated: classes full -->", "", "does not show all parts")])
def test_a_page_without_a_place_for_each_part_is_refused(mine, old, new, complaint):
    page = mine / "README.md"
    page.write_text(page.read_text().replace(old, new))
    with pytest.raises(InputError, match=complaint):
        Report.of(mine, ["small", "full"])
