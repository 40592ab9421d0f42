"""The whole road on a tiny digits run, then each of its steps again: resumed, damaged, changed, and alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cli.tiny import BENCH, DATA, DISCOVER, EVERYTHING, FINETUNE
from vitsparse.circuit import Circuit
from vitsparse.circuit.files import read_tensors
from vitsparse.cli import main, shared
from vitsparse.cli import run as run_verb
from vitsparse.cli.config import load_config
from vitsparse.compiler import SparseViT, dense_flops
from vitsparse.evaluation.ablation import Ablation
from vitsparse.model.weights import load_pretrained

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

STEPS = ["train", "discover", "sparsify", "finetune", "evaluate"]


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


def resume(out: Path, capsys, *changes: str) -> list[str]:
    """Resume the run with changed flags; the names of the steps that were done again."""
    capsys.readouterr()
    assert main(["run", "--out", str(out), "--resume", *EVERYTHING, *changes]) == 0
    shown = capsys.readouterr().out
    return [name for name in STEPS if f"[{name}] finished before" not in shown]


def assert_same_weights(one: Path, other: Path) -> None:
    """Bit for bit; the files themselves may differ in the order of their metadata."""
    (a, _), (b, _) = (read_tensors(folder / "model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[key], b[key]) for key in a)


def state(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_everything_is_in_one_folder(finished):
    for name in ("config.resolved.yaml", "environment.json", "circuit.json", "ablation.safetensors", "circuit.png",
                 "circuit.svg", "results.json", "results.md", "dense/curves.png", "dense/gradient_flow.png",
                 "dense/metrics.csv", "dense/gradient_flow.csv", "pruned/plan.txt", "finetuned/curves.png"):
        assert (finished / name).stat().st_size > 100, name
    config = load_config(None, finished / "config.resolved.yaml")
    assert (config.train.epochs, config.bench.batches, config.discover.threshold) == (2, (1, 3), 1e-6)
    assert json.loads((finished / "environment.json").read_text())["torch"]


def test_files_load_and_belong_together(finished):
    dense = load_pretrained(finished / "dense")
    circuit, ablation = Circuit.load(finished / "circuit.json"), Ablation.load(finished / "ablation.safetensors")
    assert circuit.ablation["sha256"] == ablation.sha256
    assert 0 < circuit.num_kept <= circuit.graph.num_edges
    for name in ("pruned", "finetuned"):
        sparse = SparseViT.from_pretrained(finished / name)
        assert sparse.circuit == circuit
        assert sparse.config == dense.config


def test_results_have_the_fields_of_the_format(finished):
    results = json.loads((finished / "results.json").read_text())
    assert list(results["rows"]) == ["dense", "pruned", "finetuned"]
    dense, circuit = load_pretrained(finished / "dense"), Circuit.load(finished / "circuit.json")
    for name, row in results["rows"].items():
        assert 0 <= row["accuracy"] <= 1
        assert row["loss"] > 0
        assert set(row["latency_ms"]) == {"1", "3"}
        for measured in row["latency_ms"].values():
            assert ("eager" in measured) == (name == "dense")
            assert all(0 < t["p20"] <= t["p50"] <= t["p80"] for t in measured.values())
    rows = results["rows"]
    assert rows["dense"]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows["dense"]["flops"] == dense_flops(dense.config) > rows["pruned"]["flops"]
    assert rows["pruned"]["flops"] == rows["finetuned"]["flops"]
    assert (rows["dense"]["edges_kept"], rows["dense"]["nodes_dead"]) == (circuit.graph.num_edges, 0)
    assert rows["pruned"]["edges_kept"] == circuit.num_kept
    assert rows["pruned"]["nodes_dead"] == len(circuit.dead)
    assert rows["pruned"]["nodes_constant"] == len(circuit.constant)
    assert results["machine"]["torch"]


def test_resume_of_a_finished_run_does_nothing(copy, capsys):
    models = {name: state(copy / name) for name in ("dense", "pruned", "finetuned")}
    assert resume(copy, capsys) == []
    assert {name: state(copy / name) for name in models} == models


def test_resume_does_again_what_is_damaged_or_changed(copy, capsys):
    (copy / "results.json").write_text("{}")
    assert resume(copy, capsys) == ["evaluate"]
    assert json.loads((copy / "results.json").read_text())["rows"]
    assert resume(copy, capsys, "--bench.repeats", "2") == ["evaluate"]
    circuit = Circuit.load(copy / "circuit.json")
    (copy / "circuit.json").unlink()
    assert resume(copy, capsys, "--bench.repeats", "2")[0] == "discover"
    assert Circuit.load(copy / "circuit.json") == circuit


def test_resume_goes_on_after_the_step_that_failed(copy, capsys, monkeypatch):
    shutil.rmtree(copy / "pruned")

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_verb.sparsify, "sparsify", full_disk)
    assert main(["run", "--out", str(copy), "--resume", *EVERYTHING]) == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert resume(copy, capsys) == ["sparsify"]


@pytest.mark.parametrize(("flags", "message"), [
    (["--data.train_images", "0"], "data.train_images"),
    (["--data.name", "tiny_imagenet"], "where its images are"),
    (["--model.patch_size", "3"], "patch_size"),
    (["--discover.ablation", "counterfactual", "--discover.corruption", "blur"], "cannot be compiled"),
])
def test_bad_input_leaves_a_finished_run_as_it_was(copy, capsys, flags, message):
    before = state(copy)
    assert main(["run", "--out", str(copy), *EVERYTHING, *flags]) == 2
    assert message in capsys.readouterr().err
    assert state(copy) == before


def test_a_circuit_that_keeps_nothing_ends_with_a_note(copy, capsys):
    done = resume(copy, capsys, "--discover.threshold", "100")
    assert done == STEPS[1:]
    assert Circuit.load(copy / "circuit.json").num_kept == 0
    assert_same_weights(copy / "pruned", copy / "finetuned")
    rows = json.loads((copy / "results.json").read_text())["rows"]
    assert rows["finetuned"]["loss"] == rows["pruned"]["loss"]
    assert resume(copy, capsys, "--discover.threshold", "100") == []


def in_ranks(out: str, flags: list[str]) -> int:
    """The whole road without pictures, which take longest."""
    with pytest.MonkeyPatch.context() as patch:
        for verb in (run_verb.discover, shared):
            patch.setattr(verb, "save_figure", lambda *_: None)
        return main(["run", "--out", out, *flags])


def test_two_ranks_go_the_road_together(two_ranks, finished, tmp_path):
    out = tmp_path / "out"
    assert two_ranks("tests.cli.test_run:in_ranks", str(out), EVERYTHING) == [0, 0]
    made, expected = ({str(path.relative_to(folder)) for path in folder.rglob("*.*")} for folder in (out, finished))
    assert made == {name for name in expected if not name.endswith((".png", ".svg"))}
    for model in ("dense", "finetuned"):
        together, alone = (np.genfromtxt(folder / model / "metrics.csv", delimiter=",", names=True)
                           for folder in (out, finished))
        for column in ("train_loss", "val_loss"):
            np.testing.assert_allclose(together[column], alone[column], rtol=0, atol=1e-5)
    assert Circuit.load(out / "circuit.json") == Circuit.load(finished / "circuit.json")


def test_resume_with_another_recipe_is_refused(copy, capsys):
    assert main(["run", "--out", str(copy), "--resume", *EVERYTHING, "--train.lr", "0.5"]) == 2
    assert "recipe.lr" in capsys.readouterr().err


def test_a_new_run_in_the_same_folder_gives_the_same_weights(copy, finished, capsys):
    assert main(["run", "--out", str(copy), *EVERYTHING]) == 0
    assert "starting anew" in capsys.readouterr().out
    assert (copy / "circuit.json").read_bytes() == (finished / "circuit.json").read_bytes()
    for name in ("dense", "pruned", "finetuned"):
        assert_same_weights(copy / name, finished / name)


def test_the_steps_alone_give_the_same_files(finished, tmp_path):
    dense, pruned = finished / "dense", finished / "pruned"
    calls = [["discover", str(dense), *DATA, *DISCOVER, "--out", str(tmp_path)],
             ["sparsify", str(dense), str(tmp_path / "circuit.json"), "--out", str(tmp_path / "pruned")],
             ["finetune", str(pruned), "--dense", str(dense), *DATA, *FINETUNE, "--out", str(tmp_path / "finetuned")],
             ["evaluate", str(pruned), "--dense", str(dense), *DATA, *BENCH, "--out", str(tmp_path / "results")]]
    for call in calls:
        assert main([*call, "--device", "cpu"]) == 0
    assert Circuit.load(tmp_path / "circuit.json") == Circuit.load(finished / "circuit.json")
    for name in ("pruned", "finetuned"):
        assert_same_weights(tmp_path / name, finished / name)
    assert list(json.loads((tmp_path / "results" / "results.json").read_text())["rows"]) == ["dense", "pruned"]


@pytest.mark.parametrize("call", [["discover", "{}/dense"], ["evaluate", "{}/pruned", "--dense", "{}/dense"],
                                  ["finetune", "{}/pruned", "--dense", "{}/dense"]], ids=lambda call: call[0])
def test_a_model_for_other_classes_is_refused(call, finished, tmp_path, capsys):
    call = [argument.format(finished) for argument in call]
    assert main([*call, "--classes", "3", "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "num_classes" in shown
    assert "expected: 3" in shown


def test_data_is_summarised(tmp_path, capsys):
    assert main(["data", "--out", str(tmp_path), "--classes", "3"]) == 0
    facts = json.loads((tmp_path / "data.json").read_text())
    assert (facts["train"]["classes"], facts["train"]["size"]) == (3, "8x8x1")
    assert facts["test"]["class_names"] == ["0", "1", "2"]
    assert "images a class" in capsys.readouterr().out
