"""What sparsify takes, what it refuses, and what the calls on its result refuse; each by name."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.compiler.cases import BACKENDS, CONFIG, case_of, needs_cpu
from tests.strategies import make_ablation, make_images, make_model
from tests.tolerances import BACKEND, error
from vitsparse.circuit import Circuit, Graph
from vitsparse.compiler import sparsify
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation
from vitsparse.model.config import ViTConfig


def refused(match: str, **changes) -> None:
    case = case_of(graph=Graph(2, 3))
    arguments = {"model": case.model, "circuit": case.circuit, "ablation": case.ablation, **changes}
    with pytest.raises(InputError, match=match):
        sparsify(arguments.pop("model"), arguments.pop("circuit"), **arguments)


def test_counterfactual_ablation_cannot_be_compiled():
    model = make_model(CONFIG)
    refused("counterfactual ablation cannot be compiled", model=model,
            ablation=Ablation.counterfactual(model, lambda images, labels: images.flip(0)))


def test_other_shapes():
    other = ViTConfig(**{**CONFIG.to_dict(), "depth": 3})
    refused(r"expected: depth=2, heads=3[\s\S]*found: Graph\(depth=3", circuit=Circuit.full(Graph(3, 3)))
    refused(r"expected: depth=3, heads=3", model=make_model(other))
    wide = ViTConfig(**{**CONFIG.to_dict(), "embed_dim": 48})
    refused(r"expected: \[T, D\] = \(17, 24\)[\s\S]*found: \(17, 48\)", ablation=Ablation.zero(make_model(wide)))
    refused(r"ablation.values\['m0.g0'\]", circuit=Circuit.full(Graph(2, 3, mlp_groups=2)))


@pytest.mark.parametrize(("name", "value"), [
    ("model", torch.nn.Linear(2, 2)), ("circuit", iter([True])), ("circuit", np.ones(3, dtype=bool)),
    ("ablation", "zero"), ("ablation", iter([])),
])
def test_other_types(name, value):
    refused(rf"where: {name}", **{name: value})


def test_a_model_without_classifier():
    headless = make_model(ViTConfig(**{**CONFIG.to_dict(), "num_classes": 0}))
    refused("num_classes", model=headless, ablation=Ablation.zero(headless))


def test_backends_by_name():
    refused(r"did you mean 'torch'", backend="trch")
    for name in ("cuda", "triton"):
        refused(rf"backend '{name}' cannot run here[\s\S]*it is not implemented for this", backend=name)
    refused("only the cpu backend packs its parameters", backend="torch", inference_only=True)


def test_a_backend_that_is_not_built_says_why(monkeypatch):
    monkeypatch.setattr("vitsparse.backends.native.why_not", lambda name: [f"lib{name} is missing", "and out of date"])
    refused("libcpu is missing; and out of date", backend="cpu")
    case = case_of()
    with torch.no_grad():
        assert error(case.sparse("auto")(case.images), case.exact) <= BACKEND


def test_other_weights_only_warn():
    case = case_of()
    changed = copy.deepcopy(case.model)
    with torch.no_grad():
        changed.head.weight.mul_(2)
    with pytest.warns(UserWarning, match="measured on other weights"):
        sparsify(changed, case.circuit, ablation=case.ablation)
    named = Circuit(case.circuit.graph, case.circuit.keep, ablation={"kind": "mean", "sha256": "0" * 64})
    with pytest.warns(UserWarning, match="found under another ablation"):
        sparsify(case.model, named, ablation=case.ablation)
    named = Circuit(case.circuit.graph, case.circuit.keep, ablation=case.ablation.describe())
    sparsify(case.model, named, ablation=case.ablation)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 3, 8, 9), (3, 8, 8), (1, 1, 8, 8), (1, 3, 16, 16), (2, 1, 3, 8, 8), ()])
def test_images_of_another_shape(backend, shape):
    with pytest.raises(InputError, match=r"expected: \[B, 3, 8, 8\]"):
        case_of().sparse(backend)(torch.zeros(shape))


@needs_cpu
def test_images_of_another_kind_on_the_cpu_backend():
    sparse = case_of().sparse("cpu")
    for images in (torch.zeros(1, 3, 8, 8, dtype=torch.float64), torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
                   torch.zeros(1, 3, 8, 8, device="meta")):
        with pytest.raises(InputError, match=r"expected: float32 on cpu"), torch.no_grad():
            sparse(images)


def test_the_arguments_are_left_alone_and_may_be_used_again():
    case = case_of()
    state = {key: value.clone() for key, value in case.model.state_dict().items()}
    keep, values = case.circuit.keep.copy(), case.ablation.stacked(case.circuit.graph)
    first = case.sparse()
    with torch.no_grad():
        for tensor in (*first.parameters(), *first.buffers()):
            tensor.zero_()
        assert error(case.sparse()(case.images), case.exact) <= BACKEND
    assert all(torch.equal(value, state[key]) for key, value in case.model.state_dict().items())
    assert (case.circuit.keep == keep).all()
    assert torch.equal(case.ablation.stacked(case.circuit.graph), values)


def test_the_mode_follows_the_model():
    case = case_of()
    assert not case.sparse().training
    case.model.train()
    assert case.sparse().training
    assert case.sparse("auto").plan.flops > 0


def test_timm_shapes_of_every_size_of_head():
    """Head widths 5, 8 and 20, which fit no tile, on 10 and 17 tokens, one image."""
    for dim in (5, 8, 20):
        for size in (6, 8):
            config = ViTConfig(img_size=size, patch_size=2, in_chans=1, num_classes=3, embed_dim=3 * dim, depth=2,
                               num_heads=3)
            model, graph = make_model(config, dim), Graph(2, 3)
            circuit = Circuit(graph, np.arange(graph.num_edges) % 4 != 3)
            images = make_images(config, 1, dim)
            ablation = make_ablation(model, graph, "mean")
            outs = [sparsify(model, circuit, ablation=ablation, backend=name)(images).detach() for name in BACKENDS]
            assert all(error(out, outs[0]) <= BACKEND for out in outs)
