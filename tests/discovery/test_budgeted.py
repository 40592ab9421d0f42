"""The best circuit within a latency: of the small ones the best there is, and always within."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from tests.discovery.costs import NodeCost
from tests.strategies import make_ablation, make_batches, make_model
from vitsparse.circuit import Circuit, Graph
from vitsparse.circuit.liveness import reaches_logits
from vitsparse.discovery import METHODS, budgeted
from vitsparse.discovery.descent import Descent
from vitsparse.discovery.nodes import between_live_nodes, cut_share, without
from vitsparse.discovery.objective import Objective
from vitsparse.discovery.quadratic import Quadratic, Quadratics
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation
from vitsparse.evaluation.metrics import metric_named
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import edgewise_forward

CONFIG = ViTConfig(img_size=4, patch_size=2, in_chans=1, num_classes=4, embed_dim=12, depth=2, num_heads=2,
                   mlp_ratio=1.0, drop_rate=0.1)
GRAPH = Graph(2, 2, mlp_groups=2)
COST = NodeCost(2, 2, 2)


def search(seed: int = 0, sizes: tuple[int, ...] = (5, 3), **changes: object) -> Circuit:
    model, batches = make_model(CONFIG, seed, torch.float64), make_batches(CONFIG, sizes, dtype=torch.float64)
    arguments = {"batches": batches, "graph": GRAPH, "ablation": make_ablation(model, GRAPH, "mean"), "budget": 0.6,
                 "cost": COST, "step": 0.1, **changes}
    return budgeted(model, arguments.pop("batches"), **arguments)


@torch.no_grad()
def objective(seed: int = 0) -> Objective:
    model = make_model(CONFIG, seed, torch.float64)
    return Objective(model, make_batches(CONFIG, (5, 3), dtype=torch.float64), GRAPH,
                     make_ablation(model, GRAPH, "mean"), "kl")


@pytest.mark.parametrize(("metric", "columns"), [("kl", [0, 1, 2, 3]), ("ce", [0, 1, 2, 3]), ("ce among", [1, 3])])
def test_the_second_order_model_is_made_of_jacobians(metric, columns):
    model = make_model(CONFIG, 1, torch.float64)
    images, labels = make_batches(CONFIG, (3,), dtype=torch.float64)[0]
    labels = torch.tensor(columns)[labels % len(columns)]
    ablation, keep = make_ablation(model, GRAPH, "mean"), np.random.default_rng(0).random(GRAPH.num_edges) < 0.8
    metric = metric_named("ce").among(columns) if metric == "ce among" else metric_named(metric)
    batches = [(images[:2], labels[:2]), (images[2:], labels[2:])]
    with torch.no_grad():
        found = Quadratics(model, batches, GRAPH, ablation, metric).around(keep, 7)
    weights = torch.tensor(keep, dtype=torch.float64, requires_grad=True)
    logits = edgewise_forward(model, images, weights, graph=GRAPH, ablation=ablation)
    slope, = torch.autograd.grad(metric(logits, labels, model(images).detach()), weights, retain_graph=True)
    draws = torch.randn(3, len(columns), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    root = logits[:, columns].softmax(-1).detach().sqrt()
    vectors = root * draws - root**2 * (root * draws).sum(-1, keepdim=True)
    rows = [torch.autograd.grad(logits[image, columns] @ vectors[image], weights, retain_graph=True)[0]
            for image in range(3)]
    np.testing.assert_allclose(found.slope, slope, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.response, torch.stack(rows), rtol=1e-5, atol=1e-7)


def test_the_draws_have_the_softmax_covariance():
    """E[v v'] = diag p - p p': sqrt(p) z - p (sqrt(p) . z) is a linear map of z, and this is its square."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    linear = p.sqrt().diag() - torch.outer(p, p.sqrt())
    torch.testing.assert_close(linear @ linear.T, p.diag() - torch.outer(p, p))


def test_choosing_sees_changes_together():
    """Two that do the same are cheap alone and dear together; opposites cancel."""
    model = Quadratic(np.array([0.0, 0.01, 0.0, -0.5]), np.array([[1.0, 1.0, 0.5, 0.0], [0.0, 0.0, -1.0, 0.0]]))
    worth = np.ones(4)
    assert model.choose(worth, 2) == [3, 0]
    assert model.choose(worth, 3) == [3, 0, 2]
    assert model.choose(worth, np.inf, harmless=True) == [3]
    assert model.choose(worth, np.inf) == [3, 0, 2, 1]
    assert model.choose(np.array([1.0, 0.0, 9.0, 1.0]), 5) == [3, 2]
    assert model.choose(worth, 2, overlap=np.eye(4, dtype=bool)[::-1]) == [3, 1]
    assert model.fill(worth, 2, after=np.array([-1.0, 0.0])) == [3, 0]
    assert model.fill(worth, 0.5, after=np.zeros(2)) == []
    assert model.together([0, 2]) == pytest.approx(0.25 * (1.5**2 + 1))
    pair = model.times(np.array([[-1.0], [0.0], [1.0], [0.0]]))
    assert pair.marginal(np.zeros(2)) == pytest.approx([0.25 * (0.5**2 + 1)])
    assert model.sums(np.array([1, 1, -1, 0]), 2).slope == pytest.approx([-0.5, 0.01])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_set_of_nodes_within_the_budget_is_much_better(seed):
    found, full = search(seed), np.ones(GRAPH.num_edges, dtype=bool)
    within = []
    for count in range(len(GRAPH.senders)):
        for dead in itertools.combinations(range(1, len(GRAPH.senders)), count):
            keep = without(GRAPH, full, dead)
            if COST.latency(Circuit(GRAPH, keep)) <= 0.6 * COST.dense:
                within.append(keep)
    with torch.no_grad():
        best = min(objective(seed).values(within))
        assert objective(seed).values([found.keep])[0] == pytest.approx(found.provenance["value"], rel=1e-9)
    assert found.provenance["value"] <= 1.2 * best
    assert COST.latency(found) <= 0.6 * COST.dense


def test_the_curve_goes_down_to_the_budget():
    circuit = search(3, budget=0.4)
    curve = circuit.provenance["curve"]
    assert (curve[0]["share"], curve[0]["value"], curve[0]["nodes_dead"]) == (1, pytest.approx(0, abs=1e-9), 0)
    assert (curve[-1]["latency_us"], curve[-1]["value"]) == (COST.latency(circuit), circuit.provenance["value"])
    assert (curve[-1]["edges"], curve[-1]["nodes_dead"]) == (circuit.num_kept, len(circuit.dead))
    assert len(curve) > 4
    assert curve[-1]["share"] <= 0.4 < curve[len(curve) // 3]["share"]
    assert not (circuit.keep & ~between_live_nodes(GRAPH, circuit.keep)).any()
    about = circuit.provenance
    assert (about["method"], about["metric"], about["budget"], about["images"]) == ("budgeted", "kl", 0.4, 8)
    assert METHODS["budgeted"] is budgeted


def test_it_goes_on_where_only_nodes_that_die_together_save_time():
    class LayerCost(NodeCost):
        """6 microseconds for each layer with a live head; all else is free, but for 10 in any case."""

        def latency(self, circuit):
            alive = reaches_logits(circuit.graph, circuit.keep)
            return 10.0 + 6.0 * len({node.layer for node, live in zip(circuit.graph.sender_nodes, alive, strict=True)
                                     if live and node.kind == "head"})

    cost = LayerCost(2, 2, 2)
    assert cost.latency(search(cost=cost, budget=16 / 22)) == 16


def test_cut_edges_are_cut_even_where_they_cost():
    taxed = NodeCost(2, 2, 2, tax=0.3)
    plain, cut = search(2, cost=taxed), search(2, cost=taxed, cut_edges=0.3)
    assert cut_share(GRAPH, cut.keep) >= 0.3 > cut_share(GRAPH, plain.keep)
    assert taxed.latency(cut) <= 0.6 * taxed.dense


def test_a_budget_of_everything_is_the_dense_model_unless_edges_must_go():
    assert search(budget=1.0).num_kept == GRAPH.num_edges
    assert cut_share(GRAPH, search(budget=1.0, cut_edges=0.1).keep) >= 0.1


@pytest.mark.parametrize("stop", [2, 5])
def test_a_search_that_was_stopped_goes_on_to_the_identical_circuit(tmp_path, monkeypatch, stop):
    expected = search(4, budget=0.45, cut_edges=0.1)
    advance = Descent.advance

    def stops(self: Descent) -> None:
        if self.rounds == stop:
            raise KeyboardInterrupt
        advance(self)

    monkeypatch.setattr(Descent, "advance", stops)
    with pytest.raises(KeyboardInterrupt):
        search(4, budget=0.45, cut_edges=0.1, journal=tmp_path / "state")
    monkeypatch.setattr(Descent, "advance", advance)
    found = search(4, budget=0.45, cut_edges=0.1, journal=tmp_path / "state")
    assert found == expected
    assert found.provenance == expected.provenance
    before = (tmp_path / "state").read_bytes()
    with pytest.raises(InputError, match="budget"):
        search(4, budget=0.46, cut_edges=0.1, journal=tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == before


def test_how_images_are_cut_into_batches_does_not_matter():
    assert search(1, sizes=(5, 3)) == search(1, batches=[
        tuple(torch.cat(column) for column in zip(*make_batches(CONFIG, (5, 3), dtype=torch.float64), strict=True))])


@pytest.mark.parametrize(("changes", "message"), [
    ({"budget": 0.2}, r"at least 0\.2632"),
    ({"budget": math.nan}, "budget is a share"),
    ({"budget": 1.2}, "budget is a share"),
    ({"budget": True}, "budget is a share"),
    ({"step": 0}, "step is a share"),
    ({"cut_edges": -0.1}, "cut_edges is a share"),
    ({"cost": None}, "bench --calibrate"),
    ({"metric": "logit_difference"}, "'kl' or 'ce'"),
    ({"metric": "k1"}, "did you mean 'kl'"),
    ({"batches": []}, "no images"),
    ({"batches": iter([])}, "only once"),
    ({"graph": Graph(2, 3)}, "another shape"),
    ({"graph": Graph(2, 2, "operator")}, "operator graph"),
])
def test_bad_input_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        search(**changes)


def test_what_cannot_be_compiled_has_no_latency():
    model = make_model(CONFIG, 0, torch.float64)
    with pytest.raises(InputError, match="cannot be compiled"):
        search(ablation=Ablation.counterfactual(model, lambda images, labels: images.flip(0)))
