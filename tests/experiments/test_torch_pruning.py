"""Torch-Pruning leaves the dense model without some heads and units: the right ones, and the FLOPs asked for."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from experiments import carry, torch_pruning
from experiments.judge import size_of
from experiments.lab import Lab, save
from experiments.making import torch_pruned
from experiments.narrow import NarrowViT, flops_of, load_narrow
from tests.experiments.tiny import TINY
from vitsparse import Ablation, Circuit, InputError, ViT, sparsify
from vitsparse.circuit.files import read_json, write_json
from vitsparse.compiler import dense_flops

needs_library = pytest.mark.skipif(importlib.util.find_spec("torch_pruning") is None,
                                   reason="the package torch-pruning is not installed")
ARGUMENTS = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 3}


def model(**more) -> ViT:
    """Weights and biases far from zero, so that a wrong row shows."""
    torch.manual_seed(0)
    made = ViT(**ARGUMENTS, **more)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made.eval()


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return [(torch.randn(6, 3, 8, 8), torch.arange(6) % 3)]


def kept(narrow: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """[R]: which columns of ``whole`` the columns of ``narrow`` are."""
    same = (narrow.T[:, None] == whole.T[None]).all(-1)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1)


def silenced(dense: ViT, narrow: NarrowViT) -> ViT:
    """``dense``, in which nobody reads the heads and units that ``narrow`` has not."""
    with torch.no_grad():
        for ours, theirs in zip(dense.blocks, narrow.blocks, strict=True):
            for layer, cut in ((ours.attn.proj, theirs.attn.proj), (ours.mlp.fc2, theirs.mlp.fc2)):
                gone = torch.ones(layer.in_features, dtype=torch.bool)
                gone[kept(cut.weight, layer.weight)] = False
                layer.weight[:, gone] = 0
    return dense


@needs_library
@pytest.mark.parametrize("more", [{}, {"qkv_bias": False, "init_values": 0.5, "global_pool": "avg"}])
def test_the_narrow_model_computes_what_the_dense_one_does_without_those_heads_and_units(batches, more):
    dense = model(**more)
    narrow = torch_pruning.narrowed(dense, batches, dense_flops(dense.config) // 2)
    heads, hidden = zip(*narrow.widths, strict=True)
    assert 2 <= sum(heads) < 8
    assert 16 <= sum(hidden) < 256
    assert all(units % 8 == 0 for units in hidden)
    assert dense.blocks[0].mlp.fc1.out_features == 128  # it was copied
    images, _ = batches[0]
    torch.testing.assert_close(narrow(images), silenced(dense, narrow)(images))


@needs_library
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_it_stops_where_the_flops_are_nearest_to_the_budget(batches, share):
    dense = model()
    budget = round(share * dense_flops(dense.config))
    narrow = torch_pruning.narrowed(dense, batches, budget)
    # A step takes at most a head and eight units of each layer; half of it is as far off as one can be.
    step = dense_flops(dense.config) * (1 / 8 + 16 / 256)
    assert abs(flops_of(narrow) - budget) <= step / 2


@needs_library
def test_where_the_budget_is_out_of_reach_it_goes_as_far_as_it_can(batches):
    narrow = torch_pruning.narrowed(model(), batches, 1)
    assert narrow.widths == ((1, 8), (1, 8))


@needs_library
def test_units_that_decide_nothing_go_first(batches):
    dense = model()
    with torch.no_grad():
        dense.blocks[0].mlp.fc1.weight[40:] = 0
        dense.blocks[0].mlp.fc2.weight[:, 40:] = 0
    narrow = torch_pruning.narrowed(dense, batches, round(0.8 * dense_flops(dense.config)))
    assert narrow.widths[0][1] <= 40 < narrow.widths[1][1]
    assert narrow.blocks[0].mlp.fc1.weight.any(dim=1).all()


def test_flops_are_counted_by_the_rule_of_the_dense_model():
    dense = model()
    assert flops_of(dense) == dense_flops(dense.config)
    assert flops_of(NarrowViT.of(dense)) == dense_flops(dense.config)
    # 5 tokens of 32; heads of 8: 4 matrices of 32 x 8, scores and values of 5 x 5 x 8; units: 2 matrices of 32 x 1
    lost = 2 * 5 * 4 * 32 * 8 + 4 * 5 * 5 * 8 + 100 * 2 * 5 * 2 * 32
    narrow = NarrowViT(dense.config, [(3, 28), (4, 128)])
    assert flops_of(narrow) == dense_flops(dense.config) - lost
    row = size_of(narrow, dense.config)
    assert row["S"] == dense_flops(dense.config) / flops_of(narrow)
    assert row["edges"] is None


def test_a_narrow_model_comes_back_from_its_files(tmp_path):
    torch.manual_seed(0)
    saved = NarrowViT(model().config, [(3, 16), (1, 40)]).eval()
    save(saved, tmp_path)
    loaded = Lab(TINY, None, tmp_path, "cpu").model(tmp_path).eval()
    images = torch.randn(2, 3, 8, 8)
    assert loaded.widths == saved.widths
    assert torch.equal(loaded(images), saved(images))


def test_it_is_carried_as_it_is(tmp_path):
    name = "torch-pruning-0.5"
    save(NarrowViT(model().config, [(3, 16), (1, 40)]), tmp_path / "out" / name)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f"{name}.json").touch()
    taken, _ = carry.models(tmp_path / "out", tmp_path / "results", tmp_path / "parts", limit=2**22, part=2**22)
    assert taken == [name]
    assert carry.join(tmp_path / "parts", tmp_path / "home") == []
    assert load_narrow(tmp_path / "home" / name).widths == ((3, 16), (1, 40))


@pytest.mark.parametrize(("field", "value", "named"), [
    ("widths", [[3, 16]], "widths"), ("widths", [[3, 16], [5, 40]], "widths"), ("widths", [[3, 16], [0, 40]], "widths"),
    ("widths", [[3, 16], [1, 32]], "weights do not fit"), ("version", 2, "narrowed ViT"),
    ("model_args", {"depht": 2}, "depht"),
])
def test_a_damaged_folder_is_refused(tmp_path, field, value, named):
    save(NarrowViT(model().config, [(3, 16), (1, 40)]), tmp_path)
    write_json(tmp_path / "config.json", {**read_json(tmp_path / "config.json"), field: value})
    with pytest.raises(InputError, match=named):
        load_narrow(tmp_path)


@pytest.fixture
def lab(tmp_path):
    """A lab with the models ``dense`` and ``target``: without what the first layer reads, six tenths of the FLOPs."""
    lab = Lab(TINY, None, tmp_path, "cpu")
    dense = lab.new_model()
    save(dense, tmp_path / "dense")
    graph = lab.graph(dense)
    keep = Circuit.full(graph).keep.copy()
    keep[: len(keep) // 16] = False
    save(sparsify(dense, Circuit(graph, keep), ablation=Ablation.zero(dense, graph=graph)), tmp_path / "target")
    return lab


@needs_library
def test_the_cell_is_judged_trained_and_timed_and_goes_on_with_the_same_pruned_model(lab, monkeypatch):
    made = torch_pruned("dense", "target")(lab, lab.out / "cell")
    target = lab.model(lab.out / "target").plan.flops
    assert abs(made.row["flops"] / target - 1) < 0.1
    assert made.before["flops"] == made.row["flops"]
    assert made.training["epochs"] == 1
    assert made.settings["pruner"]["library"].startswith("torch-pruning 1.")
    timed = lab.time(lab.out / "cell")
    assert timed["batches"]["1"]["model"]["backend"] in ("openvino", "eager")
    assert timed["accuracy"] == made.row["accuracy"]
    monkeypatch.setattr(torch_pruning, "narrowed", lambda *_: pytest.fail("it was pruned again"))
    assert torch_pruned("dense", "target")(lab, lab.out / "cell").row == made.row


def test_without_the_package_the_remedy_is_named(lab, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"vitsparse\[experiments\]"):
        torch_pruned("dense", "target")(lab, lab.out / "cell")
