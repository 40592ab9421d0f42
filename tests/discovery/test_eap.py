"""EAP is minus the gradient of the definition, and the truth itself where the model is linear."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.strategies import make_ablation, make_batches, make_model
from tests.tolerances import ORACLE
from vitsparse.circuit import GRANULARITIES, Circuit, EdgeScores, Graph
from vitsparse.discovery import METHODS, eap, state
from vitsparse.discovery.gradients import EdgeGradients
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation, fingerprint
from vitsparse.evaluation.metrics import METRICS, metric_named
from vitsparse.evaluation.planted import or_gate
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import edgewise_forward
from vitsparse.model.vit import ViT

CONFIG = ViTConfig(img_size=6, patch_size=2, in_chans=1, num_classes=5, embed_dim=15, depth=2, num_heads=3,
                   mlp_ratio=2.0, drop_rate=0.2, pos_drop_rate=0.1)
KINDS = ("zero", "mean", "counterfactual")


def ablation_of(kind: str, model: ViT, graph: Graph) -> Ablation:
    if kind == "counterfactual":  # mixes the images of a batch and reads the labels
        return Ablation.counterfactual(model, lambda images, labels: 0.5 * images.flip(0) + labels[:, None, None, None])
    return make_ablation(model, graph, kind)


def search(path: object = None, **changes: object) -> EdgeScores:
    """EAP over the 48 edges of a small model; ``changes`` replace its arguments."""
    model = make_model(CONFIG, 1)
    arguments = {"batches": make_batches(CONFIG, (3, 2, 4, 1, 2)), "graph": Graph(2, 3), **changes}
    ablation = arguments.pop("ablation", None) or ablation_of("mean", model, arguments["graph"])
    return eap(model, arguments.pop("batches"), ablation=ablation, journal=path, **arguments)


def in_ranks(path: str, kind: str) -> list[float]:
    return search(path, ablation=ablation_of(kind, make_model(CONFIG, 1), Graph(2, 3))).values.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["ce", "logit_difference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("granularity", "groups"), [*((word, 1) for word in GRANULARITIES), ("head", 3)])
def test_is_minus_the_gradient_of_the_definition(granularity, groups, kind, metric, dtype):
    model, batches = make_model(CONFIG, 1, dtype), make_batches(CONFIG, (4, 3), dtype=dtype)
    graph = Graph.of(model, granularity=granularity, mlp_groups=groups)
    ablation = ablation_of(kind, model, graph)
    keep = torch.ones(graph.num_edges, dtype=dtype, requires_grad=True)
    value = sum(METRICS[metric](edgewise_forward(model, images, keep, graph=graph, ablation=ablation, labels=labels),
                                labels, model(images)) * len(images) / 7 for images, labels in batches)
    expected = -torch.autograd.grad(value, keep)[0].double().numpy()
    scores = eap(model, batches, graph=graph, ablation=ablation, metric=metric)
    assert np.abs(expected).max() > 1e-3
    assert np.abs(scores.values - expected).max() <= 1e-5 * np.abs(expected).max()


def linear_model() -> ViT:
    """Every sub-block is affine: attention takes the mean over tokens, GELUs are far on, and the norms' ``eps`` dwarfs
    any variance."""
    config = ViTConfig(img_size=6, patch_size=2, in_chans=1, num_classes=5, embed_dim=15, depth=2, num_heads=3,
                       mlp_ratio=2.0, norm_eps=1e16)
    model = make_model(config, 3, torch.float64)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.mul_(1e8)
        for block in model.blocks:
            block.attn.qkv.weight[: 2 * config.embed_dim].zero_()
            block.mlp.fc1.bias.add_(100.0)
            block.mlp.fc2.weight.mul_(0.01)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("granularity", "groups"), [*((word, 1) for word in GRANULARITIES), ("head", 3)])
@torch.no_grad()
def test_is_the_truth_on_a_linear_model(granularity, groups, kind):
    """The truth: the metric with each edge cut alone, less that of the dense model."""
    model = linear_model()
    graph, metric = Graph.of(model, granularity=granularity, mlp_groups=groups), metric_named("logit_difference:0:3")
    ablation, (images, labels) = ablation_of(kind, model, graph), make_batches(CONFIG, (4,), dtype=torch.float64)[0]

    def value(keep: np.ndarray) -> float:
        logits = edgewise_forward(model, images, keep, graph=graph, ablation=ablation, labels=labels)
        return float(metric(logits, labels, logits))

    ones = np.ones(graph.num_edges, dtype=bool)
    dense = value(ones)
    truth = np.array([value(np.arange(graph.num_edges) != edge) - dense for edge in range(graph.num_edges)])
    scores = eap(model, [(images, labels)], graph=graph, ablation=ablation, metric=metric)
    assert np.abs(scores.values - truth).max() <= 1e-6 * np.abs(truth).max()


def test_is_blind_to_an_or_gate():
    """Either head is enough, so each alone scores 0, and so do both together: no selection keeps the gate's inputs."""
    planted = or_gate()
    scores = eap(planted.model, planted.batches(), graph=planted.graph, ablation=Ablation.zero(planted.model),
                 metric="logit_difference")
    by_name = dict(zip(scores.graph.edge_names, scores.values, strict=True))
    assert abs(by_name["a0.h0->m0"]) < 1e-9
    assert abs(by_name["a0.h1->m0"]) < 1e-9
    assert by_name["m0->logits"] > 1e-3


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_how_images_are_batched_does_not_matter(kind):
    model, whole = make_model(CONFIG, 2, torch.float64), make_batches(CONFIG, (9,), dtype=torch.float64)
    graph = Graph.of(model, granularity="qkv")
    images, labels = whole[0]
    cut = list(zip(images.split([2, 6, 1]), labels.split([2, 6, 1]), strict=True))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=4)
    expected = eap(model, whole, graph=graph, ablation=ablation_of(kind, model, graph))
    for batches in (cut, loader):
        found = eap(model, batches, graph=graph, ablation=ablation_of(kind, model, graph))
        assert np.abs(found.values - expected.values).max() <= ORACLE * np.abs(expected.values).max()
        assert found.provenance == expected.provenance


def test_the_scores_say_where_they_come_from():
    model = make_model(CONFIG, 1)
    scores = search()
    assert scores.provenance["method"] == "eap"
    assert (scores.provenance["metric"], scores.provenance["images"]) == ("ce", 12)
    assert scores.provenance["model"] == fingerprint(model)
    circuit = scores.top_k(10)
    assert isinstance(circuit, Circuit)
    assert circuit.ablation == ablation_of("mean", model, scores.graph).describe()
    assert METHODS["eap"] is eap


def test_the_model_is_left_as_it_was(capfd):
    """Dropout is off only meanwhile, modes come back, no gradient is made, and nothing is printed."""
    model, batches = make_model(CONFIG, 4), make_batches(CONFIG)
    graph = Graph.of(model)
    ablation = make_ablation(model, graph, "mean")
    expected = eap(model, batches, graph=graph, ablation=ablation)
    model.train()
    model.blocks[0].eval()
    before = fingerprint(model)
    assert np.array_equal(eap(model, batches, graph=graph, ablation=ablation).values, expected.values)
    assert (model.training, model.blocks[0].training, model.blocks[1].training) == (True, False, True)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert fingerprint(model) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("done", [0, 1, 4])
def test_goes_on_where_it_was_stopped_with_the_same_bits(tmp_path, monkeypatch, done):
    expected = search()
    monkeypatch.setattr(state, "SAVE_SECONDS", 0.0)
    with pytest.MonkeyPatch.context() as patch:
        _count(patch, stop_after=done)
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "journal")
    calls = _count(monkeypatch)
    for still_to_do in (5 - done, 0):  # the second time everything is there already
        found = search(tmp_path / "journal")
        assert len(calls) == still_to_do
        assert np.array_equal(found.values, expected.values)
        assert found.provenance == expected.provenance
        calls.clear()


def _count(patch: pytest.MonkeyPatch, stop_after: int = 99) -> list[int]:
    """One entry for each batch that is really scored."""
    original, calls = EdgeGradients.__call__, []

    def counted(*arguments):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(len(calls))
        return original(*arguments)

    patch.setattr(EdgeGradients, "__call__", counted)
    return calls


def test_the_journal_of_another_search_is_refused_and_left_alone(tmp_path):
    search(tmp_path / "journal")
    before = (tmp_path / "journal").read_bytes()
    for changes in ({"metric": "logit_difference"}, {"graph": Graph(2, 3, "block")}, {"batches": make_batches(CONFIG)}):
        with pytest.raises(InputError, match="another search"):
            search(tmp_path / "journal", **changes)
    assert (tmp_path / "journal").read_bytes() == before


def test_two_ranks_find_what_one_does(tmp_path, two_ranks):
    """Five batches for two ranks: the last round is half empty. The corruption mixes the images of a batch."""
    alone = search(ablation=ablation_of("counterfactual", make_model(CONFIG, 1), Graph(2, 3))).values
    first, second = two_ranks("tests.discovery.test_eap:in_ranks", str(tmp_path / "journal"), "counterfactual")
    assert first == second
    assert np.abs(alone - first).max() <= 1e-6 * np.abs(alone).max()


@pytest.mark.parametrize(("changes", "message"), [
    ({"metric": "kl"}, r"its gradient there is zero[\s\S]*eap_ig, exact or acdc"),
    ({"metric": metric_named("kl").among([0, 1])}, "its gradient there is zero"),
    ({"metric": "accuracy"}, "accuracy has no gradient"),
    ({"metric": "cee"}, "did you mean 'ce'"),
    ({"graph": Graph(2, 5)}, "model of another shape"),
    ({"batches": iter([])}, "read only once"),
    ({"batches": []}, "no images"),
    ({"batches": 7}, "iterable"),
    ({"batches": [(torch.zeros(2, 1, 6, 6), None)]}, "labels must be a tensor"),
    ({"batches": [(torch.zeros(2, 1, 6, 6), torch.tensor([0, 5]))]}, "outside the model's classes"),
    ({"batches": [(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))]}, "images do not fit"),
    ({"batches": [(torch.full((2, 1, 6, 6), math.nan), torch.tensor([0, 1]))]}, "finite numbers"),
    ({"ablation": Ablation.counterfactual(make_model(CONFIG), lambda images, labels: images[1:])}, "for each image"),
    ({"ablation": Ablation.zero(make_model(dataclasses.replace(CONFIG, embed_dim=30)))}, "ablation is of a model"),
])
def test_bad_input_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        search(tmp_path / "journal", **changes)
    assert not (tmp_path / "journal").exists()


def test_an_operator_graph_is_refused_by_name():
    with pytest.raises(InputError, match=r"operator graph[\s\S]*acdc or exact"):
        search(graph=Graph(2, 3, "operator"), ablation=Ablation.zero(make_model(CONFIG)))
