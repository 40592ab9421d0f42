"""Whole sparse models on the cuda backend, lowered by the compiler, against the edge-wise definition."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.compiler.cases import Case, case_of, cases
from tests.tolerances import error
from vitsparse import Circuit, Graph, InputError
from vitsparse.compiler import runners, sparse_vit
from vitsparse.compiler.joined_steps import Mlp
from vitsparse.compiler.sparse_vit import SparseViT
from vitsparse.model.config import ViTConfig

WAYS = tuple(how for how in runners.WAYS if how != "groups")
HALVES = (torch.float16, torch.bfloat16)
CONFIG = ViTConfig(img_size=8, patch_size=2, num_classes=5, embed_dim=32, depth=2, num_heads=2, init_values=0.5)
EACH = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def on_cuda(ops_on, monkeypatch):
    """(case, dtype) -> a sparse model of the backend "cuda", on the emulated device or a GPU."""
    if ops_on.emulated:
        monkeypatch.setattr(runners.run_program, "call", ops_on.run_program)
        monkeypatch.setattr(runners, "follow_torch", lambda: None)
        monkeypatch.setattr(sparse_vit, "choose", lambda *_: "cuda")

    def make(case: Case, dtype: torch.dtype) -> SparseViT:
        return case.sparse("auto").to(ops_on.device, dtype).eval()

    return make


def by(sparse: SparseViT, how: str, images: torch.Tensor) -> torch.Tensor:
    """Logits of ``images`` by one way to run, on the CPU."""
    like = next(sparse.parameters())
    with torch.no_grad():
        return sparse.ways(images.to(like.device, like.dtype))[how](images.to(like.device, like.dtype)).cpu()


@pytest.mark.parametrize("how", WAYS)
@EACH
@given(case=cases())
def test_random_circuits(on_cuda, ops_on, how, case):
    sparse = on_cuda(case, torch.float32)
    assert error(by(sparse, how, case.images), case.exact) <= 1e-5


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("dtype", HALVES)
@EACH
@given(drawn=st.tuples(st.sampled_from(["full", "dense", "sparse", "dead parts"]), st.sampled_from(["zero", "mean"]),
                       st.sampled_from([1, 2]), st.integers(0, 99)))
def test_half_precision(on_cuda, ops_on, how, dtype, drawn):
    """At most twice as far from float64 as the same plan by torch's ops in the same precision."""
    kind, ablation, groups, seed = drawn
    case = case_of(kind, ablation, seed=seed, config=CONFIG, graph=Graph(2, 2, mlp_groups=groups))
    level = 75 if dtype == torch.float16 and seed % 2 else 80
    with ops_on.at_level(level), ops_on.seed(seed):
        found = by(on_cuda(case, dtype), how, case.images)
    plain = case.sparse("torch").to(dtype)
    with torch.no_grad():
        theirs = error(plain(case.images.to(dtype)), case.exact)
    assert error(found, case.exact) <= 2 * theirs + 2 * torch.finfo(dtype).eps


@torch.no_grad()
def test_in_groups_of_images(on_cuda, ops_on, monkeypatch):
    case = case_of("sparse", config=CONFIG, graph=Graph(2, 2))
    sparse, images = on_cuda(case, torch.float32), torch.randn(11, 3, 8, 8, device=ops_on.device)
    monkeypatch.setattr(runners, "SMALLEST_GROUP", 4)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=0))
    torch.testing.assert_close(sparse.ways(images)["groups"](images), sparse.ways(images)["steps"](images))


def test_mlps_that_add_up_many_senders(on_cuda, ops_on):
    config = ViTConfig(img_size=8, patch_size=2, num_classes=5, embed_dim=32, depth=4, num_heads=4)
    keep = np.random.default_rng(1).random(Graph(4, 4).num_edges) < 0.8
    case = case_of("full", "zero", config=config, graph=Graph(4, 4))
    case = replace(case, circuit=Circuit(Graph(4, 4), keep))
    plan = case.sparse("torch")._compiled.plan("logits", "gpu_mlp")
    assert max(len(step.input.senders) for step in plan.steps if isinstance(step, Mlp)) > 8
    assert error(by(on_cuda(case, torch.float32), "fused", case.images), case.exact) <= 1e-5


@torch.no_grad()
def test_features_and_forward(on_cuda, ops_on):
    case = case_of("sparse", config=CONFIG, graph=Graph(2, 2))
    sparse, plain = on_cuda(case, torch.float32), case.sparse("torch")
    images = case.images.to(ops_on.device)
    assert error(sparse.forward_features(images).cpu(), plain.forward_features(case.images)) <= 1e-5
    assert error(sparse(images).cpu(), case.exact) <= 1e-5
    assert sparse.chosen_backend == "cuda"
    assert "qkv_attention" in str(sparse.plan)


def test_gradients_come_from_torch(on_cuda, ops_on):
    case = case_of("sparse", config=CONFIG, graph=Graph(2, 2))
    sparse, plain = on_cuda(case, torch.float32), case.sparse("torch")
    for model, images in ((sparse, case.images.to(ops_on.device)), (plain, case.images)):
        model(images).square().sum().backward()
    for (name, mine), theirs in zip(sparse.named_parameters(), plain.parameters(), strict=True):
        assert error(mine.grad.cpu(), theirs.grad) <= 1e-4, name


def test_images_of_another_kind(on_cuda, ops_on):
    sparse = on_cuda(case_of("sparse", config=CONFIG, graph=Graph(2, 2)), torch.float16)
    with pytest.raises(InputError, match="expected: float16 on"), torch.no_grad():
        sparse(torch.zeros(1, 3, 8, 8, device=ops_on.device))


def test_changed_parameters_are_packed_anew(on_cuda, ops_on):
    case = case_of("sparse", config=CONFIG, graph=Graph(2, 2))
    sparse, plain = on_cuda(case, torch.float32), case.sparse("torch")
    images = case.images.to(ops_on.device)
    with torch.no_grad():
        sparse(images)
        for model in (sparse, plain):
            model.head.weight.mul_(-2)
        assert error(sparse(images).cpu(), plain(case.images)) <= 1e-5
