"""Exact scores are one intervention per edge, nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.discovery.test_acdc import CONFIG, ablation_of_kind
from tests.planted import planted_batches, two_roads, two_roads_edges
from tests.strategies import make_ablation, make_batches, make_model
from vitsparse.circuit import EdgeScores, Graph
from vitsparse.discovery import METHODS, exact
from vitsparse.discovery.journal import Journal
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation, fingerprint
from vitsparse.evaluation.metrics import Metric, metric_named
from vitsparse.evaluation.planted import or_gate
from vitsparse.model.edgewise import edgewise_forward

ODD = Metric("odd", lambda logits, labels, dense: torch.where((logits - dense).abs().max() < 1e-4, 0.0, torch.nan))
"""No number unless the logits are those of the dense model."""


@torch.no_grad()
def plain_exact(model, batches, graph, ablation, metric: Metric) -> np.ndarray:
    """The definition: a whole forward for every edge."""
    def value(keep: np.ndarray) -> float:
        total = 0.0
        for images, labels in batches:
            logits = edgewise_forward(model, images, keep, graph=graph, ablation=ablation, labels=labels)
            total += float(metric(logits.double(), labels, model(images).double())) * len(images)
        return total / sum(len(images) for images, _ in batches)

    everything = np.ones(graph.num_edges, dtype=bool)
    scores = [value(np.arange(graph.num_edges) != edge) - value(everything) for edge in range(graph.num_edges)]
    return np.array(scores)


@pytest.mark.parametrize(("granularity", "groups", "kind", "metric"), [
    ("head", 2, "mean", "kl"), ("qkv", 1, "zero", "ce"), ("layer", 1, "mean", "logit_difference"),
    ("block", 3, "zero", "logit_difference:0:2"), ("head", 1, "counterfactual", "kl"), ("operator", 1, "zero", "kl"),
])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_definition(granularity, groups, kind, metric, dtype):
    model, batches = make_model(CONFIG, 1, dtype), make_batches(CONFIG, (3, 2), dtype=dtype)
    graph = Graph.of(model, granularity=granularity, mlp_groups=groups)
    ablation = ablation_of_kind(model, graph, kind)
    scores = exact(model, batches, graph=graph, ablation=ablation, metric=metric)
    expected = plain_exact(model, batches, graph, ablation, metric_named(metric))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(scores.values, expected, rtol=0, atol=2e-6 if dtype == torch.float32 else 1e-12)


def test_the_metric_may_be_among_classes():
    model, batches = make_model(CONFIG, 2), make_batches(CONFIG, (4,))
    graph, metric = Graph.of(model, granularity="block"), metric_named("kl").among([0, 2, 3])
    ablation = make_ablation(model, graph, "mean")
    scores = exact(model, [(images, None) for images, _ in batches], graph=graph, ablation=ablation, metric=metric)
    np.testing.assert_allclose(scores.values, plain_exact(model, batches, graph, ablation, metric), rtol=0, atol=2e-6)
    assert scores.provenance["metric"] == "kl among 0,2,3"


def test_accuracy_is_scored_by_how_far_it_drops():
    model, batches = make_model(CONFIG, 3), make_batches(CONFIG, (40,))
    graph = Graph.of(model, granularity="block")
    ablation = make_ablation(model, graph, "mean")
    batches = [(images, model(images).argmax(-1)) for images, _ in batches]  # so the dense model is always right
    scores = exact(model, batches, graph=graph, ablation=ablation, metric="accuracy").values
    np.testing.assert_allclose(scores, -plain_exact(model, batches, graph, ablation, metric_named("accuracy")),
                               rtol=0, atol=1e-12)
    assert scores.min() >= 0 < scores.max()


@pytest.mark.parametrize("granularity", ["head", "qkv", "layer"])
def test_ranks_the_planted_edges_first(granularity):
    model, batches = two_roads(), planted_batches()
    graph = Graph.of(model, granularity=granularity)
    true = two_roads_edges(granularity)
    scores = exact(model, batches, graph=graph, ablation=Ablation.mean(model, batches, graph))
    assert set(scores.top_k(len(true)).kept) == true
    assert set(scores.threshold(1e-9).kept) == true


def test_either_input_of_an_or_gate_alone_scores_nothing():
    gate = or_gate()
    scores = exact(gate.model, gate.batches(), graph=gate.graph, ablation=Ablation.zero(gate.model))
    found = dict(zip(scores.graph.edge_names, scores.values, strict=True))
    assert found["m0->logits"] > 1e-3
    assert max(abs(found["a0.h0->m0"]), abs(found["a0.h1->m0"])) < 1e-12


def test_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    model, batches = make_model(CONFIG, 1), make_batches(CONFIG)
    graph = Graph.of(model)
    arguments = {"graph": graph, "ablation": make_ablation(model, graph, "mean"), "journal": tmp_path / "journal"}
    scores = exact(model, batches, **arguments)
    content = (tmp_path / "journal").read_bytes()
    lines = content.splitlines(keepends=True)
    assert json.loads(lines[3]) == {"edge": graph.edge_names[2], "score": scores.values[2]}
    for count in (1, 9, len(lines) - 1):
        (tmp_path / "journal").write_bytes(b"".join(lines[:count]) + lines[count][:5])
        again = exact(model, batches, **arguments)
        assert np.array_equal(again.values, scores.values)
        assert again.provenance == scores.provenance
        assert (tmp_path / "journal").read_bytes() == content
    monkeypatch.setattr(Journal, "record", None)
    assert np.array_equal(exact(model, batches, **arguments).values, scores.values)


def test_a_journal_of_another_search_is_refused(tmp_path):
    model, batches = make_model(CONFIG, 1), make_batches(CONFIG)
    graph = Graph.of(model, granularity="block")
    arguments = {"graph": graph, "ablation": make_ablation(model, graph, "mean"), "journal": tmp_path / "journal"}
    exact(model, batches, **arguments)
    content = (tmp_path / "journal").read_bytes()
    with pytest.raises(InputError, match=r"of another search\n  where: .*journal: metric"):
        exact(model, batches, metric="ce", **arguments)
    assert (tmp_path / "journal").read_bytes() == content


@pytest.mark.parametrize(("changes", "message"), [
    ({"graph": Graph(2, 4)}, "model of another shape"),
    ({"batches": []}, "no images"),
    ({"batches": iter([])}, "read only once"),
    ({"metric": "k1"}, "did you mean 'kl'"),
    ({"metric": "ce", "batches": [(torch.zeros(2, 1, 6, 6), None)]}, "labels must be a tensor"),
    ({"metric": ODD}, "without an edge is no finite number\n  where: input->a0.h0"),
])
def test_bad_input_is_refused(changes, message):
    model = make_model(CONFIG)
    arguments = {"batches": make_batches(CONFIG), "graph": Graph.of(model), "ablation": Ablation.zero(model), **changes}
    with pytest.raises(InputError, match=message):
        exact(model, arguments.pop("batches"), **arguments)


def test_the_scores_say_where_they_come_from():
    model, batches = make_model(CONFIG, 3), make_batches(CONFIG)
    graph = Graph.of(model, granularity="block")
    ablation = make_ablation(model, graph, "mean")
    scores = exact(model, batches, graph=graph, ablation=ablation)
    assert isinstance(scores, EdgeScores)
    about = scores.provenance
    assert (about["method"], about["metric"], about["images"]) == ("exact", "kl", 5)
    assert about["model"] == fingerprint(model)
    assert scores.top_k(2).ablation == ablation.describe()
    assert METHODS["exact"] is exact


def scores_in_ranks(journal: str) -> list[float]:
    """What one of several ranks, or one process, finds."""
    model, batches = make_model(CONFIG, 3), make_batches(CONFIG)
    graph = Graph.of(model, granularity="layer")
    ablation = make_ablation(model, graph, "mean")
    return exact(model, batches, graph=graph, ablation=ablation, journal=journal).values.tolist()


def test_two_ranks_find_what_one_does(tmp_path, two_ranks):
    path = tmp_path / "journal"
    alone = scores_in_ranks(str(path))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert two_ranks("tests.discovery.test_exact:scores_in_ranks", str(path)) == [alone, alone]
    assert path.read_bytes() == content
