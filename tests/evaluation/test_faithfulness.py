"""Faithfulness, completeness, ROC and stability: against the formulas by hand, and on circuits that are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from tests.strategies import make_ablation, make_batches, make_model
from vitsparse.circuit import Circuit, EdgeScores, Graph
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation
from vitsparse.evaluation.faithfulness import FRACTIONS, Curve, circuit_metrics, completeness, faithfulness_curve
from vitsparse.evaluation.metrics import METRICS
from vitsparse.evaluation.planted import or_gate, random_planted
from vitsparse.evaluation.roc import roc
from vitsparse.evaluation.stability import jaccard, stability
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import edgewise_forward

CONFIG = ViTConfig(img_size=4, patch_size=2, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2,
                   drop_rate=0.3)
GRAPH = Graph(2, 2)


def parts(kind: str = "mean"):
    model, batches = make_model(CONFIG, 1), make_batches(CONFIG, (4, 3))
    return model, batches, make_ablation(model, GRAPH, kind)


def random_keeps(*shares: float) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random(GRAPH.num_edges) < share for share in shares]


def ranking(order: np.ndarray) -> EdgeScores:
    """Scores whose top is ``order``."""
    values = np.empty(GRAPH.num_edges)
    values[order] = np.arange(GRAPH.num_edges, 0, -1)
    return EdgeScores(GRAPH, values)


@torch.no_grad()
def by_hand(model, batches, ablation, keep, metric, graph=GRAPH) -> float:
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    logits = edgewise_forward(model.eval(), images, keep, graph=graph, ablation=ablation, labels=labels)
    return float(METRICS[metric](logits.double(), labels, model(images).double()))


@pytest.mark.parametrize("kind", ["zero", "mean", "counterfactual"])
def test_metrics_of_many_circuits_are_those_of_each(kind):
    model, batches, ablation = parts("zero" if kind == "counterfactual" else kind)
    if kind == "counterfactual":
        ablation = Ablation.counterfactual(model, lambda images, labels: -images + labels[:, None, None, None])
    model.train()
    keeps = random_keeps(0.1, 0.7, 0.02, 0.3)  # some leave whole sub-blocks out, which are not run
    found = circuit_metrics(model, batches, keeps, graph=GRAPH, ablation=ablation, metrics=("kl", "accuracy"))
    assert model.training
    for column, keep in enumerate(keeps):
        for row, metric in enumerate(("kl", "accuracy")):
            assert found[row, column] == pytest.approx(by_hand(model, batches, ablation, keep, metric), rel=1e-5)


def test_circuits_of_operators_are_measured_too():
    model, batches, ablation = parts("zero")
    graph = Graph(2, 2, "operator")
    keeps = np.random.default_rng(0).random((3, graph.num_edges)) < 0.9
    found = circuit_metrics(model, batches, keeps, graph=graph, ablation=ablation)
    for value, keep in zip(found[0], keeps, strict=True):
        assert value == pytest.approx(by_hand(model, batches, ablation, keep, "kl", graph), rel=1e-5)
    with pytest.raises(InputError, match="operator graph"):
        completeness(model, batches, Circuit(graph, keeps[0]), ablation=ablation)


@pytest.mark.parametrize("metric", ["kl", "ce", "logit_difference", "accuracy"])
def test_the_curve_is_that_of_the_formula(metric):
    model, batches, ablation = parts()
    scores = ranking(np.random.default_rng(1).permutation(GRAPH.num_edges))
    curve = faithfulness_curve(model, batches, scores, ablation=ablation, metric=metric)
    empty, full = (by_hand(model, batches, ablation, np.full(GRAPH.num_edges, x), metric) for x in (0.0, 1.0))
    assert curve.fractions == FRACTIONS
    assert curve.edges == (0, 0, 0, 0, 0, 1, 2, 5, 13, 26)
    for count, f, accuracy in zip(curve.edges, curve.faithfulness, curve.accuracy, strict=True):
        keep = scores.top_k(count).keep
        assert f == pytest.approx((by_hand(model, batches, ablation, keep, metric) - empty) / (full - empty), abs=1e-5)
        assert accuracy == pytest.approx(by_hand(model, batches, ablation, keep, "accuracy"))
    assert (curve.faithfulness[0], curve.faithfulness[-1]) == (0.0, pytest.approx(1.0))
    if metric == "kl":
        assert curve.faithfulness == pytest.approx([1 - value / curve.empty for value in curve.values], abs=1e-9)


def test_areas_are_linear_in_the_fraction():
    """By hand: trapezoids of f = 0, 1.5, 1 over the fractions 0.1, 0.5, 1."""
    curve = Curve("kl", (0.1, 0.5, 1.0), (1, 5, 10), (2.0, -1.0, 0.0), empty=2.0, full=0.0)
    assert curve.faithfulness == (0.0, 1.5, 1.0)
    assert curve.cpr == pytest.approx(0.4 * 0.75 + 0.5 * 1.25)
    assert curve.cmd == pytest.approx(0.4 * 0.75 + 0.5 * 0.25)
    assert json.loads(json.dumps(curve.as_dict()))["cmd"] == pytest.approx(curve.cmd)


def test_the_true_ranking_has_the_greatest_area_and_the_selection_is_the_callers():
    planted = random_planted(1)
    batches = [(images, None) for images, _ in planted.batches()]
    ablation = Ablation.mean(planted.model, batches)
    true = EdgeScores(planted.graph, planted.circuit.keep)
    best, worst = (faithfulness_curve(planted.model, batches, EdgeScores(planted.graph, scores), ablation=ablation,
                                      fractions=(0.0, planted.circuit.num_kept / planted.graph.num_edges, 1.0))
                   for scores in (true.values, 1 - true.values))
    assert best.faithfulness == pytest.approx((0, 1, 1))
    assert best.accuracy is None
    assert worst.faithfulness == pytest.approx((0, 0, 1))
    assert best.cpr > 0.7 > 0.4 > worst.cpr
    assert best.cmd == pytest.approx(1 - best.cpr)
    none = faithfulness_curve(planted.model, batches, true, ablation=ablation, fractions=(0.5, 1.0),
                              select=lambda scores, n: scores.top_k(0))
    assert none.faithfulness == (0.0, 0.0)


def test_one_road_of_an_or_gate_is_faithful_but_not_complete():
    planted = or_gate()
    ablation = Ablation.zero(planted.model)
    names = {"input->a0.h0", "a0.h0->m0", "m0->logits"}
    one_road = Circuit(planted.graph, [name in names for name in planted.graph.edge_names])
    kept = circuit_metrics(planted.model, planted.batches(), [one_road.keep], graph=planted.graph, ablation=ablation)
    assert abs(float(kept[0, 0])) < 1e-12
    found = {circuit: completeness(planted.model, planted.batches(), circuit, ablation=ablation)
             for circuit in (planted.circuit, one_road)}
    assert found[planted.circuit].mean < 1e-12
    assert found[one_road].mean > 1
    assert len(found[one_road].gaps) == 20


def test_completeness_cuts_the_same_nodes_in_both():
    model, batches, ablation = parts()
    names = {"input->a0.h0", "a0.h0->logits"}
    circuit = Circuit(GRAPH, [name in names for name in GRAPH.edge_names])
    found = completeness(model, batches, circuit, ablation=ablation, metric="ce", knockouts=8, seed=3)
    without = np.array([not name.startswith("a0.h0->") for name in GRAPH.edge_names])
    cases = {(by_hand(model, batches, ablation, circuit.keep, "ce"),
              by_hand(model, batches, ablation, np.ones(GRAPH.num_edges), "ce")),
             (by_hand(model, batches, ablation, circuit.keep & without, "ce"),
              by_hand(model, batches, ablation, without, "ce"))}
    pairs = {tuple(round(x, 5) for x in pair) for pair in zip(found.circuit, found.model, strict=True)}
    assert pairs == {tuple(round(x, 5) for x in pair) for pair in cases}
    assert found == completeness(model, batches, circuit, ablation=ablation, metric="ce", knockouts=8, seed=3)


@pytest.mark.parametrize("seed", range(4))
def test_roc_is_the_statistic_of_mann_and_whitney(seed):
    rng = np.random.default_rng(seed)
    scores = EdgeScores(GRAPH, rng.integers(-3, 4, GRAPH.num_edges))
    circuit = Circuit(GRAPH, rng.random(GRAPH.num_edges) < 0.4)
    found = roc(scores, circuit)
    true, other = (np.abs(scores.values[keep]) for keep in (circuit.keep, ~circuit.keep))
    wins = (true[:, None] > other).mean() + 0.5 * (true[:, None] == other).mean()
    assert found.auc == pytest.approx(wins)
    assert (found.fpr[0], found.tpr[0], found.fpr[-1], found.tpr[-1]) == (0, 0, 1, 1)


def test_roc_of_the_truth_of_nothing_and_of_the_opposite():
    circuit = Circuit(GRAPH, random_keeps(0.7)[0])
    assert [roc(EdgeScores(GRAPH, values), circuit).auc for values in
            (circuit.keep, -1.0 * circuit.keep, np.ones(GRAPH.num_edges), ~circuit.keep)] == [1, 1, 0.5, 0]


def test_jaccard():
    a, b = (Circuit(GRAPH, np.isin(np.arange(GRAPH.num_edges), edges)) for edges in ((0, 1, 2), (1, 2, 3, 4)))
    empty = Circuit(GRAPH, np.zeros(GRAPH.num_edges))
    assert (jaccard(a, b), jaccard(a, a), jaccard(a, empty), jaccard(empty, empty)) == (0.4, 1, 0, 1)


def test_stability_draws_images_with_their_labels_and_compares_all_pairs():
    labels = torch.arange(40)
    batches = [(part.double()[:, None, None, None].expand(-1, 1, 2, 2), part) for part in labels.split(15)]
    seen = []

    def find(resampled) -> Circuit:
        images, drawn = (torch.cat(parts) for parts in zip(*resampled, strict=True))
        assert [len(part) for part, _ in resampled] == [15, 15, 10]
        assert torch.equal(images[:, 0, 0, 0].long(), drawn)
        seen.append(drawn)
        return Circuit(GRAPH, np.arange(GRAPH.num_edges) < 10 + len(seen))

    found = stability(find, batches, runs=3, progress=False)
    assert found.jaccards == (11 / 12, 11 / 13, 12 / 13)
    assert found.mean == pytest.approx(np.mean(found.jaccards))
    assert min(found.jaccards) <= found.interval[0] < found.interval[1] <= max(found.jaccards)
    assert found.edge_frequency[[0, 11, 12, 13]] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert all(0.4 < len(drawn.unique()) / 40 < 0.85 for drawn in seen)  # about 1 - 1 / e
    assert not torch.equal(seen[0], seen[1])
    assert stability(find, batches, runs=2, progress=False).circuits[0].num_kept == 14
    assert torch.equal(seen[3], seen[0])  # the same draws from the same seed


@pytest.mark.parametrize(("changes", "message"), [
    ({"fractions": (0.5, 0.1)}, "must grow"), ({"fractions": ()}, "must grow"), ({"batches": []}, "no images"),
    ({"fractions": (0.5, 1.5)}, "must grow"), ({"fractions": (math.nan,)}, "must grow"),
    ({"metric": "kI"}, "unknown metric"),
    ({"batches": iter([])}, "read only once"), ({"scores": EdgeScores(Graph(1, 1), np.zeros(6))}, "another shape"),
    ({"batches": [(torch.zeros(2, 1, 4, 4), None)], "metric": "ce"}, "labels must be a tensor"),
])
def test_bad_curves_are_refused(changes, message):
    model, batches, ablation = parts()
    arguments = {"batches": batches, "scores": ranking(np.arange(GRAPH.num_edges)), "ablation": ablation, **changes}
    with pytest.raises(InputError, match=message):
        faithfulness_curve(model, arguments.pop("batches"), arguments.pop("scores"), **arguments)


def test_other_bad_input_is_refused():
    model, batches, ablation = parts()
    silent = make_model(CONFIG, 2)
    torch.nn.init.zeros_(silent.head.weight)
    empty = Circuit(GRAPH, np.zeros(GRAPH.num_edges))
    with pytest.raises(InputError, match="faithfulness is not defined"):
        faithfulness_curve(silent, batches, ranking(np.arange(GRAPH.num_edges)), ablation=ablation)
    with pytest.raises(InputError, match="nothing to knock out"):
        completeness(model, batches, empty, ablation=ablation)
    with pytest.raises(InputError, match="nothing to knock out"):
        completeness(model, batches, Circuit.full(GRAPH), ablation=ablation, knockouts=0)
    with pytest.raises(InputError, match="different graphs"):
        roc(EdgeScores(Graph(1, 1), np.zeros(6)), empty)
    for circuit in (empty, ~empty):
        with pytest.raises(InputError, match="all edges or of none"):
            roc(EdgeScores(GRAPH, np.zeros(GRAPH.num_edges)), circuit)
    for find, given, runs, message in (
            (lambda _: empty, batches, 1, "at least 2"), (lambda _: empty, [], 2, "no images"),
            (lambda _: empty.keep, batches, 2, "return circuits"), (lambda _: empty, iter(batches), 2, "only once")):
        with pytest.raises(InputError, match=message):
            stability(find, given, runs=runs, progress=False)
