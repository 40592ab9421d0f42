"""Nodes by what they do for each microsecond that they take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.discovery.costs import MICROSECONDS, NodeCost
from tests.strategies import make_ablation, make_batches, make_model
from vitsparse.circuit import Graph
from vitsparse.circuit.liveness import reaches_logits
from vitsparse.discovery import METHODS, node_importance
from vitsparse.discovery.eap import eap
from vitsparse.discovery.nodes import edge_senders, largest_within
from vitsparse.errors import InputError
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import edgewise_forward

CONFIG = ViTConfig(img_size=4, patch_size=2, in_chans=1, num_classes=4, embed_dim=12, depth=2, num_heads=2)
GRAPH = Graph(2, 2, mlp_groups=2)
COST = NodeCost(2, 2, 2)


def score(**settings: object):
    model, batches = make_model(CONFIG, 3, torch.float64), make_batches(CONFIG, (5, 3), dtype=torch.float64)
    ablation = make_ablation(model, GRAPH, "mean")
    scores = node_importance(model, batches, graph=GRAPH, ablation=ablation, cost=COST, **settings)
    return model, batches, ablation, scores


def importance_of(scores, sender: str) -> float:
    """The score of a node: that of its edge to the logits."""
    return scores.values[GRAPH.edge_index(f"{sender}->logits")]


def test_an_edge_is_worth_the_lesser_of_its_nodes():
    model, batches, ablation, scores = score()
    edges = eap(model, batches, graph=GRAPH, ablation=ablation).values
    for position, node in enumerate(GRAPH.sender_nodes[1:], 1):
        total = abs(edges[edge_senders(GRAPH) == position].sum())
        assert importance_of(scores, node.name) == pytest.approx(total / MICROSECONDS[node.kind])
    mlp = max(importance_of(scores, f"m1.g{k}") for k in range(2))
    values = dict(zip(GRAPH.edge_names, scores.values, strict=True))
    assert values["a0.h1->m1"] == min(mlp, importance_of(scores, "a0.h1"))
    assert values["input->a1.h0"] == importance_of(scores, "a1.h0")
    assert values["input->logits"] == scores.values.max()
    assert scores.provenance["method"] == "node_importance"
    assert METHODS["node_importance"] is node_importance


def test_nodes_die_one_after_another():
    *_, scores = score()
    order = np.argsort([importance_of(scores, name) for name in GRAPH.senders[1:]])
    for count in range(1, len(order)):
        lowest = importance_of(scores, GRAPH.senders[1:][order[count]])
        alive = reaches_logits(GRAPH, scores.threshold(lowest).keep)[1:]
        assert not alive[order[:count]].any()


@torch.no_grad()
def test_exact_importance_is_what_the_metric_rises_by():
    model, batches, ablation, scores = score(exact=True, metric="kl")
    keep = [not name.startswith("a1.h1->") for name in GRAPH.edge_names]
    images = torch.cat([images for images, _ in batches])
    logits = edgewise_forward(model, images, keep, graph=GRAPH, ablation=ablation)
    dense = model(images).log_softmax(-1)
    kl = (dense.exp() * (dense - logits.log_softmax(-1))).sum(-1).mean()
    assert importance_of(scores, "a1.h1") == pytest.approx(float(kl) / MICROSECONDS["head"])
    assert scores.provenance["exact"] is True
    assert scores.provenance["images"] == 8


@pytest.mark.parametrize(("changes", "message"), [
    ({"metric": "kl"}, "gradient there is zero"),
    ({"batches": []}, "no images"),
    ({"graph": Graph(2, 3)}, "another shape"),
    ({"graph": Graph(2, 2, "operator")}, "operator graph"),
])
def test_bad_input_is_refused(changes, message):
    model = make_model(CONFIG, 3)
    arguments = {"batches": make_batches(CONFIG), "graph": GRAPH, "ablation": make_ablation(model, GRAPH, "zero"),
                 "cost": COST, **changes}
    with pytest.raises(InputError, match=message):
        node_importance(model, arguments.pop("batches"), **arguments)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
def test_the_largest_circuit_within_a_time_is_within_it_and_the_next_one_is_not(share):
    scores, limit = score()[-1], share * COST.dense
    found = largest_within(scores, COST, limit)
    assert COST.latency(found) <= limit < COST.latency(scores.top_k(found.num_kept + 1))


def test_a_time_that_no_circuit_keeps_is_refused():
    with pytest.raises(InputError, match=r"no circuit is that fast[\s\S]*at least 10"):
        largest_within(score()[-1], COST, 9.0)
