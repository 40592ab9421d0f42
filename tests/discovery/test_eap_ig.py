"""EAP-IG is the mean of gradients along its path, by autograd; and along ``activations`` nothing is lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.discovery.test_eap import CONFIG, KINDS, ablation_of
from tests.strategies import make_batches, make_model
from tests.tolerances import ORACLE
from vitsparse.circuit import EdgeScores, Graph
from vitsparse.discovery import METHODS, eap, eap_ig, passes, state
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation
from vitsparse.evaluation.metrics import METRICS
from vitsparse.model.edgewise import Edgewise, ablation_constants, edgewise_forward, sender_outputs
from vitsparse.model.vit import ViT

STEPS = 4


def plain_eap_ig(model: ViT, images: Tensor, labels: Tensor, graph: Graph, ablation: Ablation, variant: str,
                 metric: str) -> np.ndarray:
    """Each point of the path is a whole edge-wise run. Its gradient in the weights (all 1) is <dM/dr_j, s_i - c_i>; so
    with constants c = s - (s of the dense run - a), which leave the run as it is, it is <dM/dr_j, s_dense - a>."""
    with torch.no_grad():
        dense_logits, clean = model(images), sender_outputs(model, images, graph)
        difference = clean - ablation_constants(model, images, graph=graph, ablation=ablation, labels=labels)
    edgewise = Edgewise(model, graph)
    ones = torch.ones(graph.num_edges, dtype=images.dtype)

    def gradient(stage: int, left: float) -> Tensor:
        """With the senders of ``stage`` at ``clean - left * difference`` and all others following from them."""
        own = slice(0, 1) if stage < 0 else edgewise.writes(stage)

        def run(keep: Tensor) -> tuple[Tensor, Tensor]:
            stack = edgewise.start(images)
            for current in range(-1, edgewise.num_stages - 1):
                if current >= 0:
                    edgewise.run_stage(stack, current, keep)
                if current == stage:
                    stack.put(own.start, (clean - left * difference)[own])
            return edgewise.logits(stack, keep), stack.first(len(clean))

        edgewise.constants = None
        with torch.no_grad():
            _, written = run(ones)
        edgewise.constants = written - difference
        keep = ones.clone().requires_grad_()
        logits, _ = run(keep)
        found, = torch.autograd.grad(METRICS[metric](logits, labels, dense_logits), keep)
        from_own = torch.cat([torch.arange(reader.fan_in) for reader in graph.reader_nodes])
        return found if variant == "inputs" else found * ((from_own >= own.start) & (from_own < own.stop))

    if variant == "inputs":
        total = sum(gradient(-1, 1 - k / STEPS) for k in range(STEPS))
    else:
        total = sum(gradient(stage, 1 - k / STEPS) for stage in range(-1, edgewise.num_stages - 1)
                    for k in range(1, STEPS + 1))
    return (-total / STEPS).numpy()


@pytest.mark.parametrize("variant", ["inputs", "activations"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("granularity", "groups", "metric"), [("qkv", 2, "kl"), ("block", 1, "ce")])
def test_is_the_mean_gradient_along_the_path(granularity, groups, metric, kind, variant):
    model, batches = make_model(CONFIG, 1, torch.float64), make_batches(CONFIG, (3,), dtype=torch.float64)
    graph = Graph.of(model, granularity=granularity, mlp_groups=groups)
    ablation = ablation_of(kind, model, graph)
    expected = plain_eap_ig(model, *batches[0], graph, ablation, variant, metric)
    scores = eap_ig(model, batches, graph=graph, ablation=ablation, metric=metric, steps=STEPS, variant=variant)
    assert np.abs(scores.values - expected).max() <= 10 * ORACLE * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["mean", "counterfactual"])
@torch.no_grad()
def test_along_activations_nothing_is_lost(kind):
    """All edges out of a sub-block together score what cutting them together costs, up to the steps' width."""
    model, (images, labels) = make_model(CONFIG, 1, torch.float64), make_batches(CONFIG, (4,), dtype=torch.float64)[0]
    graph = Graph.of(model)
    ablation, logits = ablation_of(kind, model, graph), model(images)
    scores = eap_ig(model, [(images, labels)], graph=graph, ablation=ablation, steps=32, variant="activations")
    for senders in (("input",), ("a0.h0", "a0.h1", "a0.h2"), ("m0",), ("m1",)):
        cut = np.array([name.split("->")[0] in senders for name in graph.edge_names])
        truth = METRICS["kl"](edgewise_forward(model, images, ~cut, graph=graph, ablation=ablation, labels=labels),
                              labels, logits)
        assert scores.values[cut].sum() == pytest.approx(float(truth), rel=0.1)


def search(path: object = None, **changes: object) -> EdgeScores:
    model = make_model(CONFIG, 1)
    arguments = {"batches": make_batches(CONFIG, (3, 2, 4)), "graph": Graph(2, 3), **changes}
    ablation = arguments.pop("ablation", None) or ablation_of("mean", model, arguments["graph"])
    return eap_ig(model, arguments.pop("batches"), ablation=ablation, journal=path, **arguments)


def test_one_step_of_inputs_starts_at_the_ablated_embedding_where_eap_is_at_the_dense_one():
    counterfactual = ablation_of("counterfactual", make_model(CONFIG, 1), Graph(2, 3))
    same = Ablation.counterfactual(make_model(CONFIG, 1), lambda images, labels: images)
    assert np.abs(search(ablation=same, steps=1).values).max() == 0
    ends = [search(ablation=counterfactual, steps=1, metric="ce").values, search(ablation=counterfactual, metric="ce",
                                                                                 steps=1, variant="activations").values]
    dense = eap(make_model(CONFIG, 1), make_batches(CONFIG, (3, 2, 4)), graph=Graph(2, 3), ablation=counterfactual)
    assert np.abs(ends[0] - dense.values).max() > 1e-2
    assert ends[1] == pytest.approx(dense.values, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("variant", ["inputs", "activations"])
def test_how_images_are_cut_does_not_matter(monkeypatch, variant):
    expected = search(variant=variant)
    monkeypatch.setitem(passes.PART_BYTES, "cpu", 1)
    found = search(variant=variant, batches=make_batches(CONFIG, (3, 2, 4)))
    assert found.values == pytest.approx(expected.values, rel=1e-4, abs=1e-6)
    assert found.provenance == expected.provenance
    assert (found.provenance["steps"], found.provenance["variant"], found.provenance["images"]) == (5, variant, 9)
    assert METHODS["eap_ig"] is eap_ig


def test_labels_are_not_needed_for_kl():
    batches = [(images, None) for images, _ in make_batches(CONFIG, (3, 2, 4))]
    assert np.array_equal(search(batches=batches).values, search().values)


def test_the_journal_knows_steps_and_variant(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "SAVE_SECONDS", 0.0)
    expected = search(tmp_path / "journal")
    assert np.array_equal(search(tmp_path / "journal").values, expected.values)
    for changes in ({"steps": 4}, {"variant": "activations"}):
        with pytest.raises(InputError, match="another search"):
            search(tmp_path / "journal", **changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"variant": "input"}, "did you mean 'inputs'"),
    ({"steps": 0}, "at least one step"),
    ({"steps": 2.5}, "at least one step"),
    ({"metric": "accuracy"}, "accuracy has no gradient"),
    ({"metric": "ce", "batches": [(torch.zeros(2, 1, 6, 6), None)]}, "labels must be a tensor"),
    ({"graph": Graph(2, 5)}, "model of another shape"),
    ({"batches": []}, "no images"),
    ({"batches": [(torch.full((2, 1, 6, 6), math.nan), torch.tensor([0, 1]))]}, "finite numbers"),
])
def test_bad_input_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        search(**changes)
