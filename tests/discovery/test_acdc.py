"""ACDC finds what the plain loop finds, and what was planted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from tests.planted import planted_batches, two_roads, two_roads_edges
from tests.strategies import make_ablation, make_batches, make_model
from vitsparse.circuit import GRANULARITIES, Circuit, Graph
from vitsparse.discovery import METHODS, acdc, chunks, objective
from vitsparse.discovery.forward import Forward
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation, fingerprint
from vitsparse.evaluation.metrics import METRICS, metric_named
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import edgewise_forward

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
    assert recorded == pytest.approx(attempts, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("lookahead", [1, 2, 50])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_trying_several_edges_at_once_changes_nothing(granularity, lookahead):
    model, batches = make_model(CONFIG, 4), make_batches(CONFIG)
    graph = Graph.of(model, granularity=granularity)
    ablation = make_ablation(model, graph, "mean")
    keep, _ = plain_acdc(model, batches, graph, ablation, 2e-2, "kl")
    found = acdc(model, batches, graph=graph, ablation=ablation, threshold=2e-2, lookahead=lookahead)
    assert np.array_equal(found.keep, keep)


@pytest.mark.parametrize("held_chunks", [0, 1])
@pytest.mark.parametrize("kind", ["mean", "counterfactual"])
def test_images_beyond_the_memory_change_nothing(monkeypatch, held_chunks, kind):
    model, batches = make_model(CONFIG, 2), make_batches(CONFIG, (4, 4))
    graph = Graph.of(model)
    ablation = ablation_of_kind(model, graph, kind)
    monkeypatch.setitem(chunks.ROWS, "cpu", 3 * CONFIG.num_tokens)
    expected = acdc(model, batches, graph=graph, ablation=ablation, threshold=1e-2)
    copies = len(graph.readers) + len(graph.senders) * (2 if kind == "counterfactual" else 1)
    image = copies * 4 * CONFIG.num_tokens * CONFIG.embed_dim
    monkeypatch.setattr(objective, "cache_bytes", lambda device: held_chunks * 3 * image)
    with pytest.warns(UserWarning, match=f"memory reaches for {held_chunks * 3} of 8 images"):
        found = acdc(model, batches, graph=graph, ablation=ablation, threshold=1e-2)
    assert found == expected
    assert found.provenance["value"] == pytest.approx(expected.provenance["value"], rel=1e-5)


def test_how_images_are_cut_into_batches_changes_nothing():
    model, batches = make_model(CONFIG, 2), make_batches(CONFIG, (6,))
    graph = Graph.of(model)
    ablation = make_ablation(model, graph, "mean")
    (images, labels), = batches
    found = acdc(model, batches, graph=graph, ablation=ablation, threshold=1e-2)
    single = [(images[index: index + 1], labels[index: index + 1]) for index in range(6)]
    again = acdc(model, single, graph=graph, ablation=ablation, threshold=1e-2)
    assert again == found
    assert again.provenance["value"] == pytest.approx(found.provenance["value"], rel=1e-5)


def test_labels_are_not_asked_for_where_nobody_reads_them():
    model, batches = make_model(CONFIG), make_batches(CONFIG)
    graph = Graph.of(model)
    ablation = make_ablation(model, graph, "mean")
    found = acdc(model, [(images, None) for images, _ in batches], graph=graph, ablation=ablation, threshold=1e-2)
    assert found == acdc(model, batches, graph=graph, ablation=ablation, threshold=1e-2)


def test_the_operator_graph_is_searched_too():
    """By whole runs; edges that carry only shapes stay, whatever the threshold."""
    model, batches = make_model(CONFIG, 1), make_batches(CONFIG)
    graph = Graph.of(model, granularity="operator")
    ablation = Ablation.zero(model)
    keep, _ = plain_acdc(model, batches, graph, ablation, 0.2, "kl")
    circuit = acdc(model, batches, graph=graph, ablation=ablation, threshold=0.2)
    assert np.array_equal(circuit.keep, keep | graph.shape_only)
    assert not circuit.keep.all()
    everything = acdc(model, batches, graph=graph, ablation=ablation, threshold=1e6)
    assert np.array_equal(everything.keep, graph.shape_only)


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_finds_exactly_the_planted_edges(granularity, groups, kind):
    model, batches = two_roads(), planted_batches()
    graph = Graph.of(model, granularity=granularity, mlp_groups=groups)
    ablation = Ablation.zero(model, graph) if kind == "zero" else Ablation.mean(model, batches, graph)
    circuit = acdc(model, batches, graph=graph, ablation=ablation, threshold=1e-9)
    assert set(circuit.kept) == two_roads_edges(granularity, groups)


def test_what_cannot_matter_is_decided_without_a_forward(monkeypatch):
    """Once all edges into the logits are cut, everything else is dead."""
    model, batches = make_model(CONFIG), make_batches(CONFIG)
    graph, runs = Graph.of(model), []
    logits = Forward.logits
    monkeypatch.setattr(Forward, "logits", lambda *arguments: runs.append(1) or logits(*arguments))
    ablation = make_ablation(model, graph, "mean")
    circuit = acdc(model, batches, graph=graph, ablation=ablation, threshold=1e6, lookahead=1)
    assert circuit.num_kept == 0
    whole, reference = 2, 1
    assert len(runs) == whole + reference + graph.reader_nodes[-1].fan_in


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, True), (1e-30, False)])
def test_a_cut_without_effect_makes_a_difference_of_exactly_nothing(threshold, kept):
    """A head that writes zeros: at a threshold of zero its edges stay, at any other they go."""
    model, batches = make_model(CONFIG, 6), make_batches(CONFIG, (2, 1))
    with torch.no_grad():
        model.blocks[0].attn.proj.weight[:, CONFIG.head_dim: 2 * CONFIG.head_dim] = 0
    circuit = acdc(model, batches, graph=Graph.of(model), ablation=Ablation.zero(model), threshold=threshold)
    assert {"a0.h1->m0", "a0.h1->a1.h2", "input->a0.h1"}.isdisjoint(circuit.kept) != kept
    assert {"a0.h1->m0", "a0.h1->a1.h2", "input->a0.h1"}.issubset(circuit.kept) == kept


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
    assert about["value"] == pytest.approx(float(total) / 5, rel=1e-5)
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
    ({"metric": metric_named("accuracy").among([0, 1])}, "accuracy falls"),
    ({"threshold": math.nan}, "finite number"),
    ({"threshold": "much"}, "finite number"),
    ({"threshold": math.inf}, "finite number"),
    ({"threshold": -1e-9}, "not negative"),
    ({"metric": "ce", "batches": [(torch.zeros(2, 1, 6, 6), None)]}, "labels must be a tensor"),
    ({"metric": "ce", "batches": [(torch.zeros(2, 1, 6, 6), torch.tensor([0, 5]))]}, "outside the model's classes"),
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


def search_in_ranks(journal: str, granularity: str, kind: str) -> list[object]:
    """What one of several ranks, or one process, finds."""
    model, batches = make_model(CONFIG, 3), make_batches(CONFIG)
    graph = Graph.of(model, granularity=granularity)
    circuit = acdc(model, batches, graph=graph, ablation=ablation_of_kind(model, graph, kind), threshold=1e-2,
                   journal=journal)
    return [circuit.keep.tolist(), dict(circuit.provenance)]


@pytest.mark.parametrize(("granularity", "kind"), [("qkv", "counterfactual"), ("operator", "zero")])
def test_two_ranks_find_what_one_does(tmp_path, two_ranks, granularity, kind):
    """To the last bit of every metric, going on where one process was killed."""
    path = tmp_path / "journal"
    alone = search_in_ranks(str(path), granularity, kind)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    assert two_ranks("tests.discovery.test_acdc:search_in_ranks", str(path), granularity, kind) == [alone, alone]
    assert path.read_bytes() == content
