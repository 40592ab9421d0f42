"""ACDC finds what the plain loop finds, bit by bit, and what was planted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from tests.planted import or_gate, planted_batches, two_roads, two_roads_edges
from tests.strategies import make_ablation, make_batches, make_model
from vitsparse.circuit import GRANULARITIES, Circuit, Graph
from vitsparse.discovery import METHODS, acdc, objective
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation, fingerprint
from vitsparse.evaluation.metrics import METRICS
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import Edgewise, edgewise_forward

CONFIG = ViTConfig(img_size=6, patch_size=2, in_chans=1, num_classes=5, embed_dim=15, depth=2, num_heads=3,
                   mlp_ratio=2.0, drop_rate=0.2, pos_drop_rate=0.1)


def ablation_of_kind(model, graph, kind) -> Ablation:
    if kind == "counterfactual":
        return Ablation.counterfactual(model, lambda images, labels: images.flip(0) + labels[:, None, None, None])
    return make_ablation(model, graph, kind)


@torch.no_grad()
def plain_acdc(model, batches, graph, ablation, threshold, metric) -> tuple[np.ndarray, list[float]]:
    """Algorithm 1 of Conmy et al. with a whole forward for every edge; also the metric of every attempt."""
    def value(keep: np.ndarray) -> float:
        total = 0.0
        for images, labels in batches:
            logits = edgewise_forward(model, images, keep, graph=graph, ablation=ablation, labels=labels)
            total = total + METRICS[metric](logits.double(), labels, model(images).double()) * len(images)
        return float(total) / sum(len(images) for images, _ in batches)

    keep, attempts = np.ones(graph.num_edges, dtype=bool), []
    current = value(keep)
    for edge in reversed(range(graph.num_edges)):
        keep[edge] = False
        attempts.append(value(keep))
        if attempts[-1] - current < threshold:
            current = attempts[-1]
        else:
            keep[edge] = True
    return keep, attempts


@pytest.mark.parametrize("threshold", [1e-3, 3e-2])
@pytest.mark.parametrize(("granularity", "groups", "kind", "metric"), [
    ("head", 1, "mean", "kl"), ("head", 2, "zero", "ce"), ("qkv", 1, "zero", "kl"), ("layer", 3, "mean", "ce"),
    ("block", 1, "mean", "kl"), ("head", 1, "counterfactual", "kl"), ("qkv", 2, "counterfactual", "ce"),
])
def test_finds_what_the_plain_loop_finds(tmp_path, granularity, groups, kind, metric, threshold):
    model, batches = make_model(CONFIG, 1), make_batches(CONFIG, (5, 3))
    graph = Graph.of(model, granularity=granularity, mlp_groups=groups)
    ablation = ablation_of_kind(model, graph, kind)
    keep, attempts = plain_acdc(model, batches, graph, ablation, threshold, metric)
    circuit = acdc(model, batches, graph=graph, ablation=ablation, threshold=threshold, metric=metric,
                   journal=tmp_path / "journal")
    assert 0 < circuit.num_kept < graph.num_edges
    assert np.array_equal(circuit.keep, keep)
    recorded = [json.loads(line)["metric"] for line in (tmp_path / "journal").read_text().splitlines()[1:]]
    assert recorded == attempts


@pytest.mark.parametrize("cached_batches", [0, 1])
@pytest.mark.parametrize("kind", ["mean", "counterfactual"])
def test_batches_beyond_the_cache_change_nothing(monkeypatch, cached_batches, kind):
    model, batches = make_model(CONFIG, 2), make_batches(CONFIG, (4, 4))
    graph = Graph.of(model)
    ablation = ablation_of_kind(model, graph, kind)
    expected = acdc(model, batches, graph=graph, ablation=ablation, threshold=1e-2)
    copies = 2 if kind == "counterfactual" else 1
    per_batch = copies * 4 * len(graph.senders) * 4 * CONFIG.num_tokens * CONFIG.embed_dim
    monkeypatch.setattr(objective, "CACHE_BYTES", cached_batches * per_batch)
    found = acdc(model, batches, graph=graph, ablation=ablation, threshold=1e-2)
    assert found == expected
    assert found.provenance == expected.provenance


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_finds_exactly_the_planted_edges(granularity, groups, kind):
    model, batches = two_roads(), planted_batches()
    graph = Graph.of(model, granularity=granularity, mlp_groups=groups)
    ablation = Ablation.zero(model, graph) if kind == "zero" else Ablation.mean(model, batches, graph)
    circuit = acdc(model, batches, graph=graph, ablation=ablation, threshold=1e-9)
    assert set(circuit.kept) == two_roads_edges(granularity, groups)


def test_keeps_exactly_one_input_of_an_or_gate():
    """Either head alone can go, not both: the later one in canonical order is tried first and goes."""
    model, batches = or_gate(), planted_batches()
    circuit = acdc(model, batches, graph=Graph.of(model), ablation=Ablation.zero(model), threshold=1e-2)
    assert circuit.kept == ("a0.h0->m0", "m0->logits")
    assert circuit.constant == ("a0.h0", "m0")


def test_what_cannot_matter_is_decided_without_a_forward(monkeypatch):
    """Once all edges into the logits are cut, everything else is dead."""
    model, batches = make_model(CONFIG), make_batches(CONFIG)
    graph, calls = Graph.of(model), []
    stages = _count(monkeypatch, Edgewise, "run_stage", calls)
    logits = _count(monkeypatch, Edgewise, "logits", calls)
    ablation = make_ablation(model, graph, "mean")
    calls.clear()
    circuit = acdc(model, batches, graph=graph, ablation=ablation, threshold=1e6)
    assert circuit.num_kept == 0
    assert calls.count(stages) == len(batches) * 2 * CONFIG.depth  # the dense run alone
    assert calls.count(logits) == len(batches) * (1 + graph.reader_nodes[-1].fan_in)


def _count(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, calls: list[str]) -> str:
    original = getattr(owner, name)

    def counted(*arguments):
        calls.append(name)
        return original(*arguments)

    monkeypatch.setattr(owner, name, counted)
    return name


@torch.no_grad()
def test_the_circuit_says_where_it_comes_from():
    model, batches = make_model(CONFIG, 3), make_batches(CONFIG)
    graph = Graph.of(model, granularity="block")
    ablation = make_ablation(model, graph, "mean")
    circuit = acdc(model, batches, graph=graph, ablation=ablation, threshold=1e-2)
    assert circuit.ablation == ablation.describe()
    about = circuit.provenance
    assert (about["method"], about["threshold"], about["metric"], about["images"]) == ("acdc", 1e-2, "kl", 5)
    assert about["model"] == fingerprint(model)
    total = sum(METRICS["kl"](edgewise_forward(model, images, circuit.keep, graph=graph, ablation=ablation).double(),
                              labels, model(images).double()) * len(images) for images, labels in batches)
    assert about["value"] == pytest.approx(float(total) / 5, rel=1e-12)
    assert METHODS["acdc"] is acdc


def test_the_model_is_left_as_it_was(capfd):
    """Dropout is off during the search only, modes come back, no gradient is made, and nothing is printed."""
    model, batches = make_model(CONFIG, 4), make_batches(CONFIG)
    graph = Graph.of(model, granularity="block")
    ablation = make_ablation(model, graph, "mean")
    expected = acdc(model, batches, graph=graph, ablation=ablation, threshold=1e-2)
    model.train()
    model.blocks[0].eval()
    before = fingerprint(model)
    assert acdc(model, batches, graph=graph, ablation=ablation, threshold=1e-2) == expected
    assert (model.training, model.blocks[0].training, model.blocks[1].training) == (True, False, True)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert fingerprint(model) == before
    assert capfd.readouterr() == ("", "")


def test_a_metric_that_is_no_number_keeps_the_edge():
    """One of these ablation values is finite, two overflow: each live reader loses its first candidate only."""
    model, batches = make_model(CONFIG, 5), make_batches(CONFIG)
    graph = Graph.of(model, granularity="block")
    huge = {name: torch.full_like(value, 3e38) for name, value in Ablation.zero(model).values.items()}
    huge |= {"a0": huge["m0"], "a1": huge["m1"]}
    circuit = acdc(model, batches, graph=graph, ablation=Ablation("mean", huge, ""), threshold=1e6)
    assert set(graph.edge_names) - set(circuit.kept) == {
        "m1->logits", "input->m1", "a0->m1", "m0->m1", "a1->m1", "m0->a1", "a0->m0", "input->a0"}


@pytest.mark.parametrize(("changes", "message"), [
    ({"graph": Graph(2, 4)}, "model of another shape"),
    ({"batches": iter([])}, "read only once"),
    ({"batches": []}, "no images"),
    ({"batches": 7}, "iterable"),
    ({"metric": "k1"}, "did you mean 'kl'"),
    ({"metric": "accuracy"}, "accuracy falls"),
    ({"threshold": math.nan}, "finite number"),
    ({"batches": [(torch.zeros(2, 1, 6, 6), torch.tensor([0, 5]))]}, "outside the model's classes"),
    ({"batches": [(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))]}, "images do not fit"),
    ({"batches": [(torch.full((2, 1, 6, 6), math.nan), torch.tensor([0, 1]))]}, "no finite number"),
])
def test_bad_input_is_refused(tmp_path, changes, message):
    model = make_model(CONFIG)
    arguments = {"batches": make_batches(CONFIG), "graph": Graph.of(model), "ablation": Ablation.zero(model),
                 "threshold": 1e-2, **changes}
    with pytest.raises(InputError, match=message):
        acdc(model, arguments.pop("batches"), **arguments, journal=tmp_path / "journal")
    assert not (tmp_path / "journal").exists()


def test_a_data_loader_serves_as_batches():
    model = make_model(CONFIG)
    images, labels = make_batches(CONFIG, (6,))[0]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=4)
    graph, ablation = Graph.of(model, granularity="layer"), Ablation.zero(model)
    found = acdc(model, loader, graph=graph, ablation=ablation, threshold=1e-2)
    assert isinstance(found, Circuit)
    assert found == acdc(model, list(loader), graph=graph, ablation=ablation, threshold=1e-2)
