"""The recipe: its checks, the schedule against the closed formula, the precision policy."""

from __future__ import annotations

import math

import pytest
import torch

from vitsparse.errors import InputError
from vitsparse.training import AmpPolicy, Recipe, amp_policy, learning_rate


@pytest.mark.parametrize(("field", "value"), [
    ("epochs", 0), ("epochs", 2.0), ("epochs", True), ("batch_size", 0), ("lr", 0), ("lr", -1e-3), ("lr", math.inf),
    ("lr", "0.1"), ("weight_decay", -1), ("betas", (0.9,)), ("betas", (0.9, 1.0)), ("eps", 0.0), ("warmup_epochs", 31),
    ("min_lr", 1.0), ("clip_grad", -1), ("label_smoothing", 1.5), ("amp", "fp8"), ("distill_weight", 2),
    ("temperature", 0), ("seed", -1), ("seed", 1.5), ("record_every", -1), ("checkpoint_every_s", math.nan),
    ("cuda_graph", 1),
])
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(InputError) as error:
        Recipe(**{field: value})
    assert error.value.where == field
    assert repr(value) in str(error.value)


def test_dict_round_trip_and_unknown_fields():
    recipe = Recipe(epochs=3, betas=(0.8, 0.95), warmup_epochs=0.5)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    with pytest.raises(InputError, match="did you mean 'weight_decay'"):
        Recipe.from_dict({"weight_decai": 0.1})


def test_schedule_is_linear_then_cosine():
    recipe = Recipe(epochs=10, lr=0.4, min_lr=0.1, warmup_epochs=2)
    steps = [learning_rate(recipe, step, 5) for step in range(50)]
    assert steps[:10] == pytest.approx([0.04 * (k + 1) for k in range(10)])
    assert steps[10] == pytest.approx(0.4)
    assert steps[30] == pytest.approx(0.25)  # half way down: the middle of 0.1 and 0.4
    assert steps[40] == pytest.approx(0.1 + 0.15 * (1 + math.cos(0.75 * math.pi)))
    assert steps[10:] == sorted(steps[10:], reverse=True)
    assert 0.1 < steps[-1] < 0.101


def test_schedule_agrees_with_torchs_cosine():
    recipe = Recipe(epochs=4, lr=0.3, min_lr=0.01, warmup_epochs=0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=28, eta_min=recipe.min_lr)
    for step in range(28):
        assert learning_rate(recipe, step, 7) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        schedule.step()


def test_warm_up_may_be_the_whole_run():
    recipe = Recipe(epochs=1, lr=1.0, warmup_epochs=1)
    assert [learning_rate(recipe, step, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


FP16, BF16, OFF = AmpPolicy(torch.float16, scale_loss=True), AmpPolicy(torch.bfloat16), AmpPolicy()


@pytest.mark.parametrize(("mode", "device", "capability", "policy"), [
    ("auto", "cpu", None, OFF), ("auto", "mps", None, OFF), ("auto", "cuda", (7, 5), FP16),
    ("auto", "cuda", (8, 0), BF16), ("auto", "cuda", (8, 6), BF16), ("auto", "cuda", (9, 0), BF16),
    ("auto", "cuda", (10, 0), BF16), ("off", "cuda", (9, 0), OFF), ("fp16", "cuda", (9, 0), FP16),
    ("bf16", "cuda", (8, 6), BF16), ("bf16", "cpu", None, BF16),
])
def test_precision_follows_the_device(mode, device, capability, policy):
    assert amp_policy(mode, device, capability) == policy


@pytest.mark.parametrize(("mode", "device", "capability"), [("bf16", "cuda", (7, 5)), ("fp16", "cpu", None)])
def test_precision_the_device_lacks_is_refused(mode, device, capability):
    with pytest.raises(InputError, match="where: amp"):
        amp_policy(mode, device, capability)
