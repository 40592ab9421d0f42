"""The metric of any circuit is that of the definition, whatever was measured before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.discovery.test_acdc import ablation_of_kind
from tests.strategies import SEEDS, circuits, configs, graphs_of, make_batches, make_model
from vitsparse.circuit import Graph
from vitsparse.discovery.objective import Objective
from vitsparse.discovery.route import Route
from vitsparse.evaluation.metrics import METRICS
from vitsparse.model.edgewise import edgewise_forward


@torch.no_grad()
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_values_are_those_of_the_definition(data):
    """Circuits of all kinds, then cuts into one reader after another, some of them adopted."""
    config = data.draw(configs())
    graph, kind = data.draw(graphs_of(config)), data.draw(st.sampled_from(("zero", "mean", "counterfactual")))
    model, batches = make_model(config, 1, torch.float64), make_batches(config, (2, 1), dtype=torch.float64)
    ablation, rng = ablation_of_kind(model, graph, kind), np.random.default_rng(data.draw(SEEDS))
    objective = Objective(model, batches, graph, ablation, "kl", lookahead=data.draw(st.sampled_from((1, 3))))

    def expect(keeps: list[np.ndarray]) -> None:
        total = torch.zeros(len(keeps), dtype=torch.float64)
        for images, labels in batches:
            for index, keep in enumerate(keeps):
                logits = edgewise_forward(model, images, keep, graph=graph, ablation=ablation, labels=labels)
                total[index] += METRICS["kl"](logits, labels, model(images)) * len(images)
        np.testing.assert_allclose(objective.values(keeps), total.numpy() / 3, rtol=1e-9, atol=1e-12)

    expect([data.draw(circuits(graph)).keep for _ in range(2)])
    objective.adopt(data.draw(circuits(graph)).keep)
    expect([objective.keep, data.draw(circuits(graph)).keep])
    for _ in range(3):
        block = objective.blocks[rng.integers(len(objective.blocks))]
        tried = [objective.keep.copy() for _ in range(4)]
        for keep in tried:
            keep[block.start: block.stop] &= rng.random(len(block)) < 0.7
        expect(tried)
        objective.adopt(tried[rng.integers(4)])
    expect([objective.keep])


def test_only_what_a_cut_changes_runs():
    """After a cut into the MLP of layer 1, only it and the heads that read it run; equal rows share a sum."""
    graph = Graph(3, 2)
    keep = np.ones(graph.num_edges, dtype=bool)
    keep[graph.edge_index("m1->a2.h0")] = False
    route = Route.through(graph, keep, next(reader for reader in graph.reader_nodes if reader.name == "m1"))
    assert [(step.kind, step.layer, step.given) for step in route.steps] == [
        ("mlp", 1, True), ("attn", 2, False), ("mlp", 2, False), ("logits", 3, False)]
    assert [graph.senders[sender] for sender in route.changed] == ["m1", "a2.h1", "m2"]
    full = Route.through(graph, np.ones(graph.num_edges, dtype=bool))
    assert [step.rows.shape[0] for step in full.steps] == [1] * 7


@pytest.mark.parametrize("granularity", ["head", "qkv"])
def test_what_nobody_reads_does_not_run(granularity):
    graph = Graph(2, 2, granularity)
    keep = np.ones(graph.num_edges, dtype=bool)
    for edge, name in enumerate(graph.edge_names):
        keep[edge] &= not name.startswith("a1.h1->")
    route = Route.through(graph, keep)
    assert "a1.h1" not in [graph.senders[sender] for sender in route.changed]
    assert {head % 2 for step in route.steps if step.layer == 1 for feeds in step.feeds for head in feeds} == {0}
