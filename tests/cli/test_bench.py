"""``vitsparse bench``: what is calibrated, checked and timed, where it goes, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from tests.compiler.cases import needs_cpu
from vitsparse.cli import bench, main
from vitsparse.cli.bench import BASELINE, named
from vitsparse.compiler.cost import CostModel, default_file
from vitsparse.compiler.cost_features import FEATURES, Caches
from vitsparse.compiler.cost_samples import samples
from vitsparse.errors import InputError

FAST = ["--bench.batches", "1", "3", "--bench.repeats", "2", "--bench.min_seconds", "0", "--bench.baselines", "eager",
        "--device", "cpu"]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def table() -> CostModel:
    """Every unit of work takes a nanosecond, with as many threads as there are."""
    return CostModel({kind: dict.fromkeys(sizes, 1e-3) for kind, sizes in FEATURES.items()}, torch.get_num_threads(),
                     Caches(near=1 << 20, far=1 << 25), {"cpu": "a test"})


@pytest.fixture
def time(tmp_path):
    """Run the verb; what it wrote."""
    def time(*arguments: object, status: int = 0) -> dict:
        assert main(["bench", *map(str, arguments), "--out", str(tmp_path / "out"), *FAST]) == status
        return json.loads((tmp_path / "out" / "bench.json").read_text()) if status == 0 else {}
    return time


def test_models_are_timed_against_baselines(finished, time, capsys):
    found = time(finished / "dense", finished / "pruned")
    assert [(row["batch"], row["model"]) for row in found["rows"]] == [
        (batch, name) for batch in (1, 3) for name in (BASELINE, "dense", "pruned")]
    for row in found["rows"]:
        latency = row["latency_ms"]
        assert 0 < latency["p20"] <= latency["p50"] <= latency["p80"]
        assert row["predicted_ms"] is None  # nobody has calibrated
        dense = next(other for other in found["rows"] if (other["model"], other["batch"]) == (BASELINE, row["batch"]))
        assert row["speedup"] == pytest.approx(dense["latency_ms"]["p50"] / latency["p50"])
    assert found["cost"] is None
    assert found["machine"]["threads"]
    shown = capsys.readouterr().out
    assert "times as fast" in shown
    assert "predicted" not in shown


def test_a_sparse_model_alone_has_a_dense_one_beside_it(finished, time):
    assert [row["model"] for row in time(finished / "pruned")["rows"]] == [BASELINE, "pruned"] * 2


@needs_cpu
def test_predictions_stand_beside_measurements_where_there_is_a_table(finished, time, table, capsys):
    table.save(default_file(table.threads))
    found = time(finished / "pruned", "--sparsify.backend", "cpu")
    assert found["cost"] == str(default_file(table.threads))
    rows = {row["batch"]: row["predicted_ms"] for row in found["rows"] if row["model"] == "pruned"}
    assert 0 < rows[1] < rows[3]
    assert [row["predicted_ms"] for row in found["rows"] if row["model"] == BASELINE] == [None, None]
    assert f"predicted {rows[1]:.3f}" in capsys.readouterr().out


def test_a_baseline_that_cannot_run_is_left_out_with_a_note(finished, time, monkeypatch):
    def missing(*_):
        raise InputError("not here", where="baseline eager")

    monkeypatch.setitem(bench.BASELINES, "eager", missing)
    found = time(finished / "pruned")
    assert found["notes"] == ["eager: left out, not here"]
    assert [(row["model"], row["speedup"]) for row in found["rows"]] == [("pruned", None)] * 2


def test_calibrating_writes_the_table_into_the_users_cache_and_uses_it(time, table, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "measure_cost", lambda **options: asked.append(options) or table)
    found = time("--calibrate")
    assert found["cost"] == str(default_file(table.threads))
    assert CostModel.load(found["cost"]).prices == table.prices
    time("--calibrate", "--quick")
    assert asked[0]["circuits"] > asked[1]["circuits"]


def test_calibrating_writes_the_file_it_is_given(time, table, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "measure_cost", lambda **_: table)
    time("--calibrate", "--cost", tmp_path / "mine.json")
    assert CostModel.load(tmp_path / "mine.json").prices == table.prices
    assert not default_file(table.threads).exists()


def test_threads_are_set_for_the_measurement_alone(time, table, monkeypatch):
    before, seen = torch.get_num_threads(), []

    def measure_cost(**_):
        seen.append(torch.get_num_threads())
        return CostModel(table.prices, seen[-1], table.caches, {})

    monkeypatch.setattr(bench, "measure_cost", measure_cost)
    time("--calibrate", "--threads", before + 1)
    assert (seen, torch.get_num_threads()) == ([before + 1], before)
    assert default_file(before + 1).exists()


@needs_cpu
def test_a_check_compares_predictions_with_models_that_run(time, table, monkeypatch, capsys):
    monkeypatch.setattr("vitsparse.compiler.cost_samples.WIDTHS", (64,))
    monkeypatch.setattr("vitsparse.compiler.cost_samples.SIDES", (4,))
    monkeypatch.setattr("vitsparse.compiler.cost_check.REFERENCE", next(samples(0)).config)
    table.save(default_file(table.threads))
    rows = time("--check", "--circuits", "2")["check"]
    assert [row["batch"] for row in rows] == [1, 3, 1, 3]
    shown = capsys.readouterr().out
    errors = sorted(abs(row["predicted_us"] / row["measured_us"] - 1) for row in rows if row["batch"] == 3)
    assert f"batch 3: median error {sum(errors) / 2:.1%} over 2 circuits" in shown


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "nothing to measure"),
    (["--check"], "--calibrate"),
    (["--check", "--circuits", "0"], "--circuits"),
    (["--calibrate", "--threads", "0"], "--threads"),
    (["nowhere"], "nowhere"),
    (["--calibrate", "a/pruned", "b/pruned"], "different names"),
    (["--check", "--cost", "nowhere.json"], "nowhere.json"),
])
def test_what_cannot_be_measured_is_refused(time, arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    time(*arguments, status=2)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_table_for_other_threads_is_refused(finished, time, table, tmp_path, capsys):
    CostModel(table.prices, table.threads + 1, table.caches, {}).save(tmp_path / "mine.json")
    time(finished / "pruned", "--cost", tmp_path / "mine.json", status=2)
    assert f"--threads {table.threads + 1}" in capsys.readouterr().err


def test_models_are_named_after_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named([tmp_path / "a", tmp_path / "b" / "c"]) == {"a": tmp_path / "a", "c": tmp_path / "b" / "c"}
    with pytest.raises(InputError, match="different names"):
        named([tmp_path / "a", tmp_path / "b" / "a"])
