"""Edge Pruning does what its formulas say, finds what was planted, and goes on after a kill with the same bits."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.discovery.learned import CONFIG, GRAPH, STEPS, ablation_of, in_ranks, learn
from tests.planted import planted_batches, two_roads, two_roads_edges
from tests.strategies import make_ablation, make_batches, make_model
from vitsparse.circuit import EdgeScores, Graph
from vitsparse.circuit.files import read_tensors
from vitsparse.data.draws import uniform
from vitsparse.discovery import METHODS, edge_pruning
from vitsparse.discovery.state import State
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation, fingerprint
from vitsparse.evaluation.metrics import METRICS, metric_named
from vitsparse.evaluation.planted import and_gate, or_gate, random_planted
from vitsparse.evaluation.roc import roc
from vitsparse.model.edgewise import edgewise_forward

ROOT = Path(__file__).resolve().parents[2]
SAME = {"rtol": 1e-9, "atol": 0}


def plain_edge_pruning(model, batches, graph, ablation, metric, settings) -> np.ndarray:
    """The loss written down as it stands in the paper, its gradient by autograd; the mean of sigmoid(a)."""
    a = torch.full((graph.num_edges,), 2.0, dtype=torch.float64, requires_grad=True)
    l1, l2, total, steps = 0.0, 10.0, 0.0, settings["steps"]
    optimizer = torch.optim.Adam([a], lr=settings["lr"])

    def cut_share(a: Tensor) -> Tensor:
        return 1 - torch.sigmoid(a - 2 / 3 * math.log(0.1 / 1.1)).mean()

    start = float(cut_share(a.detach()))
    for step in range(steps):
        images, labels = batches[step % len(batches)]
        u = uniform(settings["seed"], step, torch.arange(graph.num_edges), "hard concrete", 1)[:, 0].double()
        keep = (torch.sigmoid((u.log() - (1 - u).log() + a) / (2 / 3)) * 1.2 - 0.1).clamp(0, 1)
        logits = edgewise_forward(model, images, keep, graph=graph, ablation=ablation, labels=labels)
        gap = cut_share(a) - (start + (settings["sparsity"] - start) * min(1, (step + 1) / (0.8 * steps)))
        loss = METRICS[metric](logits, labels, model(images).detach()) + l1 * gap + l2 * gap**2
        a.grad, = torch.autograd.grad(loss, a)
        optimizer.step()
        l1, l2 = l1 + gap.item(), l2 + gap.item() ** 2
        total = total + torch.sigmoid(a.detach())
    return (total / steps).numpy()


@pytest.mark.parametrize(("granularity", "groups", "kind", "metric"), [
    ("head", 1, "mean", "kl"), ("qkv", 2, "zero", "ce"), ("block", 1, "counterfactual", "logit_difference")])
def test_learns_what_the_formulas_say(granularity, groups, kind, metric):
    model = make_model(CONFIG, 3, torch.float64)
    batches = make_batches(CONFIG, (3, 2), dtype=torch.float64)
    graph = Graph.of(model, granularity=granularity, mlp_groups=groups)
    ablation = ablation_of(kind, model) if kind == "counterfactual" else make_ablation(model, graph, kind)
    settings = {"sparsity": 0.7, "steps": 25, "lr": 0.3, "seed": 5}
    expected = plain_edge_pruning(model, batches, graph, ablation, metric, settings)
    scores = edge_pruning(model, batches, graph=graph, ablation=ablation, metric=metric, **settings)
    assert np.allclose(scores.values, expected, **SAME)
    assert np.ptp(expected) > 0.05  # the edges have parted, so the gradient of the metric counted


@pytest.mark.parametrize(("granularity", "groups", "kind"), [
    ("head", 1, "zero"), ("qkv", 1, "mean"), ("layer", 2, "mean"), ("block", 1, "zero")])
def test_finds_two_roads(granularity, groups, kind):
    model, batches = two_roads(), planted_batches()
    graph = Graph.of(model, granularity=granularity, mlp_groups=groups)
    ablation = make_ablation(model, graph, "zero") if kind == "zero" else Ablation.mean(model, batches, graph)
    scores = edge_pruning(model, batches, graph=graph, ablation=ablation, steps=100)
    true_edges = two_roads_edges(granularity, groups)
    assert set(scores.top_k(len(true_edges)).kept) == true_edges


@pytest.mark.parametrize(("seed", "shape"), [
    (0, {}), (1, {"heads": 3, "density": 0.5}), (2, {"granularity": "qkv", "density": 0.2}), (3, {"mlp_groups": 2})])
def test_finds_random_circuits(seed, shape):
    planted = random_planted(seed, **shape)
    batches = planted.batches()
    ablation = Ablation.mean(planted.model, batches, planted.graph)
    scores = edge_pruning(planted.model, batches, graph=planted.graph, ablation=ablation, steps=100)
    assert roc(scores, planted.circuit).auc >= 0.95


@pytest.mark.parametrize("gate", [and_gate, or_gate])
def test_finds_gates(gate):
    """Both inputs of an OR too, where every single cut is harmless: the masks also meet the cut of the other road."""
    planted = gate()
    scores = edge_pruning(planted.model, planted.batches(), graph=planted.graph, ablation=Ablation.zero(planted.model),
                          steps=100)
    assert roc(scores, planted.circuit).auc == 1.0


def test_reaches_the_sparsity_that_is_asked_for():
    for sparsity in (0.3, 0.8):
        scores = learn(None, sparsity=sparsity, steps=120, lr=0.3)
        assert abs(1 - scores.provenance["edges"] / GRAPH.num_edges - sparsity) < 0.12


def test_the_scores_say_where_they_come_from(tmp_path):
    scores = learn(None, sparsity=0.6, seed=3)
    about = scores.provenance
    assert (about["method"], about["metric"], about["images"], about["steps"]) == ("edge_pruning", "kl", 9, STEPS)
    assert (about["sparsity"], about["lr"], about["seed"]) == (0.6, 0.1, 3)
    assert about["model"] == fingerprint(make_model(CONFIG, 1))
    assert 0 < scores.values.min() <= scores.values.max() < 1
    assert scores.values.dtype == np.float64
    scores.save(tmp_path / "scores.safetensors")
    circuit = EdgeScores.load(tmp_path / "scores.safetensors").top_k(about["edges"])
    assert circuit.ablation == about["ablation"]
    assert circuit.provenance["edges"] == circuit.num_kept
    assert METHODS["edge_pruning"] is edge_pruning


def test_the_seed_draws_the_masks():
    first, again, other = (learn(None, seed=seed).values for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_metrics_without_labels_need_none():
    unlabelled = [(images, None) for images, _ in make_batches(CONFIG, (3, 2, 4))]
    assert np.array_equal(learn(None, batches=unlabelled).values, learn(None).values)
    two_classes = learn(None, metric=metric_named("kl").among([0, 2]))
    assert not np.array_equal(two_classes.values, learn(None).values)


def test_killed_with_sigkill_and_started_again(tmp_path):
    undisturbed = learn(tmp_path / "undisturbed")
    path = tmp_path / "journal"
    assert 5 <= killed_after(path, 5) < STEPS
    scores = learn(path)
    assert np.array_equal(scores.values, undisturbed.values)
    assert scores.provenance == undisturbed.provenance
    assert path.read_bytes() == (tmp_path / "undisturbed").read_bytes()


def killed_after(path: Path, steps: int) -> int:
    """Learn in a process of its own, killed once so many steps are saved; how many were."""
    process = subprocess.Popen([sys.executable, "-m", "tests.discovery.learned", str(path)], cwd=ROOT,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + 120
        while not path.exists() or steps_in(path) < steps:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    return steps_in(path)


def steps_in(path: Path) -> int:
    return int(read_tensors(path)[0]["step"])


def test_what_is_finished_is_not_learned_again(tmp_path, monkeypatch):
    scores = learn(tmp_path / "journal")
    monkeypatch.setattr("vitsparse.discovery.gradients.EdgeGradients.__call__", None)
    assert np.array_equal(learn(tmp_path / "journal").values, scores.values)


@pytest.mark.parametrize(("field", "changes"), [
    ("sparsity", {"sparsity": 0.5}), ("steps", {"steps": STEPS + 1}), ("lr", {"lr": 0.2}), ("seed", {"seed": 1}),
    ("metric", {"metric": "ce"}), ("data", {"batches": make_batches(CONFIG, (3, 4, 2))}),
])
def test_a_journal_of_another_search_is_refused(tmp_path, field, changes):
    path = tmp_path / "journal"
    learn(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"another search\n  where: .*journal: {field}\n"):
        learn(path, **changes)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["mean", "counterfactual"])
def test_two_ranks_learn_what_one_does(tmp_path, two_ranks, kind):
    alone = in_ranks(str(tmp_path / "alone"), kind)
    first, second = two_ranks("tests.discovery.learned:in_ranks", str(tmp_path / "journal"), kind)
    assert first == second
    assert np.allclose(first, alone, rtol=1e-6, atol=0)
    assert two_ranks("tests.discovery.learned:in_ranks", str(tmp_path / "journal"), kind) == [first, first]


@pytest.mark.parametrize(("changes", "message"), [
    ({"graph": Graph(2, 4)}, "model of another shape"),
    ({"graph": Graph(2, 2, "operator"), "ablation": Ablation.zero(make_model(CONFIG, 1))}, "operator graph has none"),
    ({"batches": iter([])}, "read only once"),
    ({"batches": []}, "no images"),
    ({"batches": [(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64))]}, "no images"),
    ({"batches": [(torch.zeros(2, 1, 4, 4), None)], "metric": "ce"}, r"labels must be a tensor\n  where: batch 0"),
    ({"batches": [(torch.zeros(2, 1, 4, 4), torch.tensor([0, 5]))], "metric": "ce"}, "outside the model's classes"),
    ({"batches": [(torch.full((2, 1, 4, 4), math.nan), torch.tensor([0, 1]))]}, "no finite number\n  where: step 0"),
    ({"metric": "k1"}, "did you mean 'kl'"),
    ({"metric": "accuracy"}, "accuracy has none"),
    ({"sparsity": 1.0}, "share of edges to cut"),
    ({"sparsity": math.nan}, "share of edges to cut"),
    ({"steps": 0}, "integer >= 1"),
    ({"lr": -0.1}, "positive number"),
    ({"lr": math.inf}, "positive number"),
])
def test_bad_input_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        learn(tmp_path / "journal", **changes)
    assert not (tmp_path / "journal").exists()


def test_the_model_is_left_as_it_was(capfd):
    model, batches = make_model(CONFIG), make_batches(CONFIG)
    ablation = make_ablation(model, GRAPH, "mean")
    model.train()
    before = fingerprint(model)
    edge_pruning(model, batches, graph=GRAPH, ablation=ablation, steps=2)
    assert model.training
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert fingerprint(model) == before
    assert capfd.readouterr() == ("", "")


def test_the_state_is_saved_again_and_again(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("vitsparse.discovery.state.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(State, "save", lambda state, arrays: saved.append(int(arrays["step"])))
    learn(tmp_path / "journal", steps=4)
    assert saved == [1, 2, 3, 4, 4]
