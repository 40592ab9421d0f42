"""``vitsparse discover``: every method, every choice of a circuit from scores, and what is refused."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

from tests.cli.tiny import DATA
from vitsparse.circuit import Circuit, EdgeScores
from vitsparse.cli import discover, main
from vitsparse.cli.config import DiscoverConfig, load_config
from vitsparse.cli.presets import PRESETS
from vitsparse.cli.shared import load_images
from vitsparse.compiler.cost import CostModel, default_file
from vitsparse.compiler.cost_features import FEATURES, Caches
from vitsparse.discovery import METHODS
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation

SMALL = [*DATA, "--device", "cpu", "--discover.granularity", "block", "--discover.mlp_groups", "1",
         "--discover.images", "16", "--discover.batch_size", "8"]
OF_METHOD = {"acdc": ["--discover.threshold", "1e-6"], "eap_ig": ["--discover.steps", "2"],
             "edge_pruning": ["--discover.steps", "3", "--discover.sparsity", "0.5"],
             "budgeted": ["--discover.budget", "0.9"]}


@pytest.fixture
def table() -> CostModel:
    """Every unit of work takes a microsecond."""
    return CostModel({kind: dict.fromkeys(sizes, 1.0) for kind, sizes in FEATURES.items()}, 1,
                     Caches(near=1 << 20, far=1 << 25), {"cpu": "a test"})


@pytest.fixture(autouse=True)
def _quick(monkeypatch, table, tmp_path):
    """Pictures and the measuring of a cost table take longer than the searches; their own tests look at them."""
    monkeypatch.setattr(discover, "save_figure", lambda *_: None)
    monkeypatch.setattr(discover, "measure_cost", lambda **_: table)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def search(finished, tmp_path):
    """Search in the finished run's dense model; the folder of the result."""
    def search(*flags: str, status: int = 0) -> Path:
        assert main(["discover", str(finished / "dense"), "--out", str(tmp_path / "out"), *SMALL, *flags]) == status
        return tmp_path / "out"
    return search


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_its_circuit_and_its_ablation(search, method):
    out = search("--method", method, *OF_METHOD.get(method, []))
    circuit = Circuit.load(out / "circuit.json")
    assert circuit.provenance["method"] == method
    assert circuit.ablation["sha256"] == Ablation.load(out / "ablation.safetensors").sha256
    assert 0 < circuit.num_kept < circuit.graph.num_edges
    scored = inspect.signature(METHODS[method]).return_annotation == "EdgeScores"
    assert (out / "scores.safetensors").exists() == scored
    if scored:
        scores = EdgeScores.load(out / "scores.safetensors")
        assert scores.top_k(circuit.num_kept) == circuit


@pytest.mark.parametrize(("flags", "chosen"), [
    (["--edges", "5"], lambda scores: scores.top_k(5)),
    (["--edges", "0.5", "--select", "greedy"], lambda scores: scores.greedy(round(0.5 * scores.graph.num_edges))),
    (["--edges", "6", "--prune"], lambda scores: scores.top_k(6).prune()),
    (["--select", "threshold", "--discover.threshold", "0.6", "--discover.by", "signed"],
     lambda scores: scores.threshold(0.6, by="signed")),
    ([], lambda scores: scores.top_k(round(0.2 * scores.graph.num_edges))),
])
def test_a_circuit_is_chosen_from_scores(search, flags, chosen):
    out = search("--method", "random", *flags)
    circuit = Circuit.load(out / "circuit.json")
    assert circuit == chosen(EdgeScores.load(out / "scores.safetensors"))


def test_the_seed_decides_random_scores(search):
    first, second = (EdgeScores.load(search("--method", "random", "--seed", seed) / "scores.safetensors").values
                     for seed in "12")
    assert not np.array_equal(first, second)


def test_the_circuit_of_some_classes(search, capsys):
    out = search("--method", "acdc", *OF_METHOD["acdc"], "--discover.classes", "3,7,9", "--metric", "ce")
    assert Circuit.load(out / "circuit.json").provenance["metric"] == "ce among 3,7,9"
    search("--method", "acdc", *OF_METHOD["acdc"], "--discover.classes", "3,10", status=2)
    assert "discover.classes\n  expected: 0 to 9\n  found: 10" in capsys.readouterr().err


def test_only_images_of_the_classes_are_taken(finished):
    images = load_images(load_config("digits"), "train")
    chosen = discover.of_classes(images, (3, 7))
    assert set(chosen.labels) == {3, 7}
    assert len(chosen) == np.isin(images.labels, (3, 7)).sum()
    assert discover.of_classes(images, ()) is images


def test_the_circuit_of_an_image_dependent_ablation_cannot_be_compiled_and_says_so(search, finished, capsys):
    out = search("--method", "random")
    assert (out / "ablation.safetensors").exists()
    search("--method", "acdc", *OF_METHOD["acdc"], "--discover.ablation", "counterfactual",
           "--discover.corruption", "permute")
    assert "for analysis and cannot be compiled" in capsys.readouterr().out
    assert Circuit.load(out / "circuit.json").ablation["kind"] == "counterfactual"
    assert not (out / "ablation.safetensors").exists()  # that of the search before is not this circuit's
    assert not (out / "scores.safetensors").exists()


def test_an_ablation_that_is_learned(search):
    out = search("--method", "random", "--discover.ablation", "optimal", "--discover.ablation_steps", "3")
    assert Ablation.load(out / "ablation.safetensors").kind == "optimal"


def test_a_cost_table_is_given_or_measured_once(tmp_path, table, monkeypatch):
    table.save(tmp_path / "mine.json")
    found = [discover.cost_table(str(tmp_path / "mine.json"), tmp_path), discover.cost_table(None, tmp_path)]
    monkeypatch.setattr(discover, "measure_cost", lambda **_: pytest.fail("it was measured before"))
    found.append(discover.cost_table(None, tmp_path))
    assert [each.prices for each in found] == [table.prices] * 3
    with pytest.raises(InputError, match=r"nowhere\.json"):
        discover.cost_table("nowhere.json", tmp_path)


def test_a_calibrated_table_is_found(tmp_path, table, monkeypatch):
    monkeypatch.setattr(discover, "measure_cost", lambda **_: pytest.fail("bench --calibrate has measured it"))
    monkeypatch.setattr(discover.torch, "get_num_threads", lambda: 7)
    table.save(default_file(7))
    assert discover.cost_table(None, tmp_path).prices == table.prices
    assert CostModel.load(tmp_path / discover.COST_FILE).prices == table.prices  # for a search that goes on elsewhere


def test_the_circuit_of_operators(search):
    out = search("--method", "acdc", *OF_METHOD["acdc"], "--discover.granularity", "operator",
                 "--discover.ablation", "zero")
    circuit = Circuit.load(out / "circuit.json")
    assert circuit.graph.num_edges == 14 + 42 * 2
    assert 0 < circuit.num_kept < circuit.graph.num_edges


def test_a_search_is_resumed_or_started_anew(search, capsys):
    out = search("--method", "acdc", *OF_METHOD["acdc"])
    journal = (out / "journal.jsonl").read_bytes()
    search("--method", "acdc", *OF_METHOD["acdc"], "--resume")
    assert (out / "journal.jsonl").read_bytes() == journal
    search("--method", "acdc", "--discover.threshold", "1e-3", "--resume", status=2)
    assert "of another search" in capsys.readouterr().err
    assert (out / "journal.jsonl").read_bytes() == journal
    search("--method", "acdc", "--discover.threshold", "1e-3")
    assert (out / "journal.jsonl").read_bytes() != journal


@pytest.mark.parametrize(("settings", "place", "expected"), [
    ({"method": "acd"}, "method", "acdc"),
    ({"metric": "loss"}, "metric", "ce or kl"),
    ({"method": "random", "threshold": 0.1}, "threshold", "for the method random: select, edges, by"),
    ({"method": "random", "threshold": 0.1, "select": "top_k"}, "threshold", "select, edges, by"),
    ({"method": "random", "select": "threshold", "edges": 5}, "edges", "threshold, select, by"),
    ({"method": "random", "steps": 5}, "steps", "select, edges, by"),
    ({"method": "acdc", "select": "top_k"}, "select", "for the method acdc: threshold"),
    ({"method": "acdc", "edges": 0.1}, "edges", "for the method acdc: threshold"),
    ({"method": "acdc", "corruption": "blur"}, "corruption", "for the method acdc: threshold"),
    ({"granularity": "operator"}, "ablation", "zero"),
])
def test_settings_without_a_meaning_are_refused_by_name(settings, place, expected):
    with pytest.raises(InputError) as caught:
        DiscoverConfig(**settings)
    assert caught.value.where == place
    assert expected in str(caught.value.expected)


@pytest.mark.parametrize(("flags", "message"), [
    (["--method", "random", "--edges", "2.5"], "discover.edges"),
    (["--method", "random", "--edges", "99"], "at most 15"),
    (["--method", "random", "--edges", "-1"], "discover.edges"),
    (["--method", "random", "--select", "threshold"], "discover.threshold"),
    (["--method", "acdc", "--discover.threshold", "None"], "needs a setting\n  where: discover.threshold"),
    (["--method", "random", "--discover.ablation", "counterfactual"], "unknown corruption"),
])
def test_a_search_that_cannot_be_made_says_why(search, capsys, flags, message):
    search(*flags, status=2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_preset_sets_for_its_method_goes_with_it(preset):
    own, other = load_config(preset).discover, load_config(preset, method="random").discover
    assert own.threshold == PRESETS[preset]["discover"]["threshold"]
    assert other.threshold is None
    assert other.images == own.images


def test_the_file_may_name_the_method(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("discover: {method: random, classes: [1, 2], edges: 0.1}")
    found = load_config("digits", file).discover
    assert (found.method, found.threshold, found.classes, found.edges) == ("random", None, (1, 2), 0.1)
