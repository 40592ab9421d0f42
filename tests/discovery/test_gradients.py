"""EdgeGradients is the derivative of the definition, for any weights, however the images are cut; and it is frugal."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.strategies import make_ablation, make_batches, make_model
from tests.tolerances import ORACLE, error
from vitsparse.circuit import GRANULARITIES, Graph
from vitsparse.discovery import passes
from vitsparse.discovery.gradients import EdgeGradients
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation
from vitsparse.evaluation.metrics import Metric, metric_named
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import edgewise_forward
from vitsparse.model.vit import ViT

CONFIG = ViTConfig(img_size=6, patch_size=2, in_chans=1, num_classes=5, embed_dim=15, depth=2, num_heads=3,
                   mlp_ratio=2.0, drop_rate=0.2, pos_drop_rate=0.1)
OTHER = dataclasses.replace(CONFIG, global_pool="avg", qkv_bias=False, init_values=0.5)


def ablation_of_kind(model: ViT, graph: Graph, kind: str) -> Ablation:
    if kind == "counterfactual":
        return Ablation.counterfactual(model, lambda images, labels: 0.5 * images.flip(0) + labels[:, None, None, None])
    return make_ablation(model, graph, kind)


def by_autograd(model: ViT, images: Tensor, labels: Tensor, keep: Tensor, metric: Metric, graph: Graph,
                ablation: Ablation) -> tuple[Tensor, Tensor]:
    """Sum over images of the metric of ``edgewise_forward``, and its gradient in ``keep``."""
    keep = keep.clone().requires_grad_()
    logits = edgewise_forward(model, images, keep, graph=graph, ablation=ablation, labels=labels)
    value = metric(logits.double(), labels, model(images).detach().double()) * len(images)
    return value.detach(), torch.autograd.grad(value, keep)[0]


def weights_of_kind(graph: Graph, kind: str) -> Tensor:
    """``random``: every reader has its own sums; ``cuts``: a few readers do, the others share the trunk; ``node``: all
    edges from one sender are cut, so that the readers behind it share a sum that is not the trunk."""
    if kind == "random":
        return torch.rand(graph.num_edges, dtype=torch.float64)
    keep = torch.ones(graph.num_edges, dtype=torch.float64)
    if kind == "cuts":
        keep[torch.randperm(graph.num_edges)[: max(2, graph.num_edges // 20)]] = 0.0
    else:
        sender = graph.senders[2]
        keep[[name.startswith(f"{sender}->") for name in graph.edge_names]] = 0.0
    return keep


@pytest.mark.parametrize("weights", ["random", "cuts", "node"])
@pytest.mark.parametrize("ablated", ["zero", "mean", "counterfactual"])
@pytest.mark.parametrize(("granularity", "groups"), [*((word, 1) for word in GRANULARITIES), ("head", 3), ("qkv", 2)])
def test_is_the_gradient_of_the_definition_with_cuts_in_place(granularity, groups, ablated, weights):
    config = OTHER if groups > 1 or granularity == "block" else CONFIG
    model = make_model(config, 1, torch.float64)
    graph = Graph.of(model, granularity=granularity, mlp_groups=groups)
    ablation, metric = ablation_of_kind(model, graph, ablated), metric_named("kl")
    images, labels = make_batches(config, (4,), dtype=torch.float64)[0]
    keep = weights_of_kind(graph, weights)
    expected = by_autograd(model, images, labels, keep, metric, graph, ablation)
    value, gradient = EdgeGradients(model, graph, ablation, metric)(images, labels, keep)
    assert error(value, expected[0]) <= ORACLE
    assert error(gradient, expected[1]) <= ORACLE


def test_the_parts_of_a_batch_add_up(monkeypatch):
    """Whatever fits in memory at a time, and also where a counterfactual needs the whole batch."""
    model = make_model(CONFIG, 2, torch.float64)
    graph, metric = Graph.of(model), metric_named("logit_difference")
    images, labels = make_batches(CONFIG, (5,), dtype=torch.float64)[0]
    for ablated in ("mean", "counterfactual"):
        gradients = EdgeGradients(model, graph, ablation_of_kind(model, graph, ablated), metric)
        for keep in (None, torch.rand(graph.num_edges)):
            whole = gradients(images, labels, keep)
            monkeypatch.setitem(passes.PART_BYTES, "cpu", 1)
            parts = gradients(images, labels, keep)
            monkeypatch.undo()
            assert error(parts[0], whole[0]) <= ORACLE
            assert error(parts[1], whole[1]) <= ORACLE


@pytest.mark.parametrize("images", [3, 5, 48])
def test_memory_stays_below_that_of_a_training_step(monkeypatch, images):
    """From three images on: less than a forward and backward of the dense model, let alone all senders' outputs beside
    it; and for large batches it does not grow any more."""
    config = dataclasses.replace(CONFIG, img_size=16, embed_dim=32, depth=4, num_heads=8)
    model = make_model(config)
    graph, metric = Graph.of(model, granularity="qkv"), metric_named("ce")
    batch, labels = make_batches(config, (images,))[0]
    monkeypatch.setattr(passes, "SMALL_BYTES", 0)
    monkeypatch.setitem(passes.PART_BYTES, "cpu", 2**22)
    gradients = EdgeGradients(model, graph, make_ablation(model, graph, "mean"), metric)
    step = peak_bytes(lambda: torch.nn.functional.cross_entropy(model(batch), labels).backward())
    assert peak_bytes(lambda: gradients(batch, labels)) <= min(step, 2**22)


def peak_bytes(run) -> int:
    """The most bytes of tensors alive at a time that ``run`` made."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    events = sorted((event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"),
                    key=lambda event: event.start_ns())
    return int(torch.tensor([event.nbytes() for event in events]).cumsum(0).max())


def test_labels_are_read_only_where_the_metric_needs_them():
    model = make_model(CONFIG)
    graph, zero = Graph.of(model), Ablation.zero(model)
    images, labels = make_batches(CONFIG, (3,))[0]
    keep = torch.rand(graph.num_edges)
    EdgeGradients(model, graph, zero, metric_named("kl"))(images, None, keep)
    gradients = EdgeGradients(model, graph, zero, metric_named("ce"))
    for wrong, message in ((None, "must be a tensor"), (labels[:2], "do not fit the images"), (labels + 9, "outside")):
        with pytest.raises(InputError, match=message):
            gradients(images, wrong)
    with pytest.raises(InputError, match="one value per edge"):
        gradients(images, labels, keep[1:])
    with pytest.raises(InputError, match="model of another shape"):
        EdgeGradients(model, Graph(2, 4), zero, metric_named("ce"))
