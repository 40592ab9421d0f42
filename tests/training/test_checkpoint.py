"""Checkpoints: tensors by name, whole or absent, checked before use."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import nn

from vitsparse.errors import InputError, MissingFile
from vitsparse.training.checkpoint import (
    Checkpoint,
    describe_model,
    first_difference,
    latest_checkpoint,
    load_checkpoint,
    model_tensors,
    optimizer_tensors,
    restore,
    save_checkpoint,
)


def trained(model):
    """An AdamW over ``model`` after two updates."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for seed in (0, 1):
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()
    return optimizer


def tied_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


def checkpoint_of(model, optimizer, **state):
    return Checkpoint(model_tensors(model), optimizer_tensors(model, [optimizer]), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_of_model_and_optimizer(tmp_path, dtype):
    model = tied_model() if dtype == torch.float32 else nn.Linear(3, 3)
    optimizer = trained(model)
    model.to(dtype)
    save_checkpoint(tmp_path, checkpoint_of(model, optimizer, note=[1, None, 0.1]), 7)
    other = (tied_model() if dtype == torch.float32 else nn.Linear(3, 3)).to(dtype)
    fresh = torch.optim.AdamW(other.parameters(), lr=1e-2)
    loaded = load_checkpoint(tmp_path)
    restore(loaded, other, [fresh])
    assert loaded.state["note"] == [1, None, 0.1]
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        for field, value in optimizer.state[ours].items():
            assert torch.equal(fresh.state[theirs][field], value), field


def test_optimizer_state_goes_by_name_not_order(tmp_path):
    model = nn.Linear(3, 2)
    save_checkpoint(tmp_path, checkpoint_of(model, trained(model)), 1)
    reordered = torch.optim.AdamW([model.bias, model.weight])
    restore(load_checkpoint(tmp_path), model, [reordered])
    assert reordered.state[model.bias]["exp_avg"].shape == (2,)


def test_only_the_latest_stays(tmp_path):
    model = tied_model()
    optimizer = trained(model)
    assert load_checkpoint(tmp_path) is None
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, checkpoint_of(model, optimizer, step=step), step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.json", "step-00000003"]
    assert load_checkpoint(tmp_path).state["step"] == 3
    assert load_checkpoint(tmp_path).path == latest_checkpoint(tmp_path)


def test_a_real_write_error_leaves_the_old_checkpoint(tmp_path):
    model = nn.Linear(3, 3)
    optimizer = trained(model)
    save_checkpoint(tmp_path, checkpoint_of(model, optimizer), 1)
    large = nn.Linear(300, 300)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(InputError, match=r"could not be written(.|\n)*step-00000001 is intact"):
            save_checkpoint(tmp_path, checkpoint_of(large, torch.optim.AdamW(large.parameters())), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.json", "step-00000001"]
    assert torch.equal(load_checkpoint(tmp_path).model["weight"], model.weight)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_damage_is_found(tmp_path, name):
    model = tied_model()
    path = save_checkpoint(tmp_path, checkpoint_of(model, trained(model)), 1) / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"damaged\n  where: .*{name}"):
        load_checkpoint(tmp_path)
    path.unlink()
    with pytest.raises(MissingFile, match=name):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("pointer", ['{"folder": "../elsewhere"}', '{"folder": 3}', "[]", "{"])
def test_a_damaged_pointer_is_refused(tmp_path, pointer):
    (tmp_path / "latest.json").write_text(pointer)
    with pytest.raises(InputError, match=r"latest\.json"):
        load_checkpoint(tmp_path)


def test_the_same_step_is_not_written_twice(tmp_path):
    model = nn.Linear(3, 2)
    save_checkpoint(tmp_path, checkpoint_of(model, trained(model)), 1)
    with pytest.raises(InputError, match="already of this step"):
        save_checkpoint(tmp_path, checkpoint_of(model, trained(model)), 1)


def test_first_difference_names_the_field():
    saved = {"a": 1, "b": {"c": [1, 2], "d": None}}
    assert first_difference(saved, {"a": 1, "b": {"c": [1, 2], "d": None}}, "x") is None
    assert first_difference(saved, {"a": 1, "b": {"c": [1, 3], "d": None}}, "x") == ("x.b.c[1]", 2, 3)
    assert first_difference(saved, {"a": 1, "b": {"c": [1], "d": None}}, "x") == ("x.b.c", [1, 2], [1])
    assert first_difference(saved, {"a": 1}, "x") == ("x.b", saved["b"], None)
    assert first_difference(None, {"a": 1}, "x") == ("x", None, {"a": 1})


def test_a_model_is_described_by_structure_not_weights(make_vit):
    assert describe_model(make_vit(seed=0)) == describe_model(make_vit(seed=1))
    found = first_difference(describe_model(nn.Linear(2, 3)), describe_model(nn.Linear(2, 4)), "model")
    assert found == ("model.tensors.weight[1]", 3, 4)
