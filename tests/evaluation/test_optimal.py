"""Optimal ablation: a linear truth, never worse than the mean, and a value like any other ablation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.planted import Planted
from tests.strategies import make_batches, make_circuit, make_model
from vitsparse.circuit import Graph
from vitsparse.compiler import sparsify
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation, fingerprint
from vitsparse.evaluation.metrics import METRICS
from vitsparse.evaluation.optimal import _OneLess, _turns
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import edgewise_forward

CONFIG = ViTConfig(img_size=6, patch_size=2, in_chans=1, num_classes=5, embed_dim=15, depth=2, num_heads=3,
                   mlp_ratio=2.0, init_values=0.5, pos_drop_rate=0.3)
GROUPS = Graph(2, 3, mlp_groups=2)


@pytest.fixture(scope="module")
def model():
    return make_model(CONFIG)


@pytest.fixture(scope="module")
def batches():
    return make_batches(CONFIG, (6, 3))


@pytest.fixture(scope="module")
def optimal(model, batches) -> Ablation:
    return Ablation.optimal(model, batches, GROUPS, steps=40, lr=0.05)


@torch.no_grad()
def harm(model, batches, graph: Graph, ablation: Ablation, metric: str = "kl") -> np.ndarray:
    """[S]: the metric, a mean over images, with all edges out of each sender cut, by the definition."""
    found = []
    for sender in range(len(graph.senders)):
        keep = np.concatenate([np.arange(reader.fan_in) != sender for reader in graph.reader_nodes])
        found.append(sum(len(images) * METRICS[metric](
            edgewise_forward(model, images, keep, graph=graph, ablation=ablation).double(), labels,
            model(images).double()) for images, labels in batches) / sum(len(images) for images, _ in batches))
    return torch.stack(found).numpy()


def test_no_sender_does_more_harm_than_its_mean_and_most_do_less(model, batches, optimal):
    before = harm(model, batches, GROUPS, Ablation.mean(model, batches, GROUPS))
    after = harm(model, batches, GROUPS, optimal)
    assert (after <= before).all()
    assert (after < before).mean() > 0.7
    assert after.sum() < 0.85 * before.sum()


def test_a_sender_that_does_not_gain_keeps_its_mean(model, batches):
    """Steps so wild that they only do harm."""
    mean = Ablation.mean(model, batches, GROUPS)
    wild = Ablation.optimal(model, batches, GROUPS, steps=1, lr=1e6)
    assert all(torch.equal(wild.values[name], value) for name, value in mean.values.items())


@pytest.mark.parametrize("metric", ["ce", "logit_difference"])
def test_other_metrics(model, batches, metric):
    mean = Ablation.mean(model, batches)
    found = Ablation.optimal(model, batches, metric=metric, steps=20, lr=0.1)
    before, after = (harm(model, batches, Graph(2, 3), ablation, metric) for ablation in (mean, found))
    assert (after <= before).all()
    assert after.mean() < before.mean() - 0.01


@torch.no_grad()
def test_finds_the_constant_that_is_known():
    """The mean over images of KL(p(x) || p) is least where p is the mean of p(x). That of the mean x is another one."""
    plant = Planted(depth=1, heads=1, channels=3)
    plant.head(0, 0, reads=(0,), writes=1)
    plant.logits(reads=(1,))
    model, graph = plant.model, Graph(1, 1)
    brightness = torch.tensor([-0.3, 0.1, 0.8, 1.0] * 9, dtype=torch.float64)
    images = brightness[:, None, None, None].expand(-1, 1, 4, 4)
    dense = model(images)
    least = METRICS["kl"](dense.softmax(-1).mean(0).log().expand_as(dense), None, dense)
    keep = [not edge.startswith("a0.h0->") for edge in graph.edge_names]
    mean, optimal = Ablation.mean(model, [(images, None)]), Ablation.optimal(model, [(images, None)], steps=80, lr=0.1)
    of_mean, found = (METRICS["kl"](edgewise_forward(model, images, keep, graph=graph, ablation=ablation), None, dense)
                      for ablation in (mean, optimal))
    assert least - 1e-12 <= found < least + 0.05 * (of_mean - least)
    assert of_mean > 1.1 * least


def test_values_of_groups_add_up(optimal):
    assert set(optimal.values) == {*GROUPS.senders, "m0", "m1"}
    for layer in range(2):
        assert torch.equal(optimal.values[f"m{layer}"], sum(optimal.values[f"m{layer}.g{k}"] for k in range(2)))
    assert all(value.dtype == torch.float32 and value.shape == (10, 15) for value in optimal.values.values())


def test_it_is_a_value_with_a_file(tmp_path, model, optimal):
    assert optimal.describe() == {"kind": "optimal", "sha256": optimal.sha256}
    assert optimal.fingerprint == fingerprint(model)
    assert (optimal.provenance["images"], optimal.provenance["metric"], optimal.provenance["steps"]) == (9, "kl", 40)
    optimal.save(tmp_path / "ablation.safetensors")
    loaded = Ablation.load(tmp_path / "ablation.safetensors")
    assert (loaded.kind, loaded.sha256, loaded.fingerprint) == ("optimal", optimal.sha256, optimal.fingerprint)


@pytest.mark.parametrize(("granularity", "groups"), [("head", 2), ("qkv", 1), ("block", 2)])
@torch.no_grad()
def test_its_circuits_compile(model, batches, optimal, granularity, groups):
    graph = Graph(2, 3, granularity, groups)
    circuit = make_circuit(graph, "dense", 3)
    images = batches[0][0]
    expected = edgewise_forward(model, images, circuit.keep, graph=graph, ablation=optimal)
    sparse = sparsify(model, circuit, ablation=optimal, backend="reference").eval()
    assert (sparse(images) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_seed_and_the_order_of_batches_decide_and_nothing_else_does(model, batches, optimal):
    model.train()
    again = Ablation.optimal(model, batches, GROUPS, steps=40, lr=0.05)
    assert model.training
    model.eval()
    assert again.sha256 == optimal.sha256
    few = [Ablation.optimal(model, batches, GROUPS, steps=4, lr=0.1, seed=seed).sha256 for seed in (0, 1)]
    assert len({*few, optimal.sha256}) == 3


@torch.no_grad()
def test_each_image_loses_the_sender_it_is_told(model, batches, optimal):
    """One forward of the fast way against the definition: another sender in every image."""
    images = batches[0][0]
    for graph in (GROUPS, Graph(2, 3)):
        lost = torch.tensor([0, 1, 4, len(graph.senders) - 1, 2, 5])
        found = _OneLess(model, graph).logits(images, lost, optimal.stacked(graph))
        for image, sender in enumerate(lost):
            keep = np.concatenate([np.arange(reader.fan_in) != int(sender) for reader in graph.reader_nodes])
            expected = edgewise_forward(model, images[image:image + 1], keep, graph=graph, ablation=optimal)
            assert torch.allclose(found[image], expected[0], rtol=1e-5, atol=1e-5)


def test_senders_take_turns():
    """Every sender once a round, whatever the sizes of the batches."""
    drawn = torch.cat([_turns(0, seen, count, 7) for seen, count in ((0, 3), (3, 4), (7, 15), (22, 6))])
    rounds: list[Tensor] = list(drawn.split(7))
    assert all(sorted(turn.tolist()) == list(range(7)) for turn in rounds)
    assert not torch.equal(rounds[0], rounds[1])
    assert torch.equal(drawn, _turns(0, 0, 28, 7))


@pytest.mark.parametrize(("changes", "message"), [
    ({"batches": []}, "no images"),
    ({"batches": iter([])}, "read only once"),
    ({"batches": [(torch.zeros(2, 1, 6, 6), None)], "metric": "ce"}, r"labels must be a tensor\n  where: batch 0"),
    ({"batches": [(torch.zeros(2, 1, 6, 6), torch.tensor([0, 5]))], "metric": "ce"}, "outside the model's classes"),
    ({"batches": [(torch.zeros(2, 1, 8, 8), None)]}, "images do not fit"),
    ({"graph": Graph(3, 3)}, "model of another shape"),
    ({"metric": "k1"}, "did you mean 'kl'"),
    ({"metric": "accuracy"}, "accuracy has none"),
    ({"steps": -1}, "integer >= 0"),
    ({"lr": math.nan}, "positive number"),
])
def test_bad_input_is_refused(model, batches, changes, message):
    arguments = {"batches": batches, **changes}
    with pytest.raises(InputError, match=message):
        Ablation.optimal(model, arguments.pop("batches"), **arguments)
