"""Whole sparse models on the Triton backend, against the edge-wise definition; run by ``test_interpreter.py`` too."""

from __future__ import annotations

import pytest
import torch

from tests.compiler.cases import case_of
from tests.tolerances import error
from vitsparse import Graph
from vitsparse.backends import triton
from vitsparse.compiler.runners import WAYS_OF
from vitsparse.model.config import ViTConfig

CONFIG = ViTConfig(img_size=8, patch_size=2, num_classes=5, embed_dim=32, depth=2, num_heads=2, init_values=0.5)
DEVICES = ["cpu"] if triton.interpreted() else [pytest.param("cuda", marks=pytest.mark.gpu)]

pytestmark = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch):
    monkeypatch.setattr("vitsparse._triton.tune.choose", lambda op, x, shape, candidates, launch: candidates[0])


@pytest.mark.parametrize("how", WAYS_OF["triton"])
@pytest.mark.parametrize(("kind", "ablation"), [("full", "zero"), ("dense", "mean"), ("sparse", "mean"),
                                                ("dead parts", "zero")])
@torch.no_grad()
def test_random_circuits(device, how, kind, ablation):
    for seed, groups in ((1, 1), (2, 2)):
        case = case_of(kind, ablation, seed=seed, config=CONFIG, graph=Graph(2, 2, mlp_groups=groups))
        sparse = case.sparse("triton").to(device).eval()
        found = sparse.ways(case.images.to(device))[how](case.images.to(device))
        assert error(found.cpu(), case.exact) <= 1e-5


@torch.no_grad()
def test_half_precision(device):
    case = case_of("dense", "mean", config=CONFIG, graph=Graph(2, 2))
    sparse, plain = (case.sparse(backend).to(torch.float16) for backend in ("triton", "torch"))
    images = case.images.half()
    theirs = error(plain(images), case.exact)
    assert error(sparse.to(device)(images.to(device)).cpu(), case.exact) <= 2 * theirs + 2 * torch.finfo(torch.half).eps
    assert sparse.chosen_backend == "triton"


def test_gradients_come_from_torch(device):
    case = case_of("sparse", config=CONFIG, graph=Graph(2, 2))
    sparse, plain = case.sparse("triton").to(device), case.sparse("torch")
    for model, images in ((sparse, case.images.to(device)), (plain, case.images)):
        model(images).square().sum().backward()
    for (name, mine), theirs in zip(sparse.named_parameters(), plain.parameters(), strict=True):
        assert error(mine.grad.cpu(), theirs.grad) <= 1e-4, name
