"""One update: losses against torch's, weight-decay groups, clipping, distillation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vitsparse.data.ranks import Ranks
from vitsparse.errors import InputError
from vitsparse.training import AmpPolicy
from vitsparse.training.muon import Muon, orthogonal
from vitsparse.training.optim import Updater, distillation, objective, parameter_groups, soft_cross_entropy


@pytest.fixture
def logits():
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


@pytest.fixture
def targets():
    return torch.softmax(torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64), -1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_soft_cross_entropy_is_torchs(logits, targets, smoothing):
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(soft_cross_entropy(logits, targets, smoothing), expected)


def test_one_hot_targets_give_the_usual_cross_entropy(logits):
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    loss = soft_cross_entropy(logits, F.one_hot(labels, 5).double())
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


def test_half_precision_logits_are_not_rounded_again(logits, targets):
    half = logits.half()
    torch.testing.assert_close(soft_cross_entropy(half, targets.float()).double(),
                               F.cross_entropy(half.double(), targets), rtol=1e-5, atol=0)


def test_distillation_is_hintons(logits, targets):
    teacher, temperature = targets * 10, 3.0
    expected = F.kl_div(F.log_softmax(logits / temperature, -1), F.log_softmax(teacher / temperature, -1),
                        log_target=True, reduction="batchmean") * temperature**2
    torch.testing.assert_close(distillation(logits, teacher, temperature), expected)
    assert distillation(logits, logits, temperature) == 0


def test_objective_weighs_the_two_losses(logits, targets, make_recipe):
    recipe = make_recipe(distill_weight=0.25, temperature=2.0)
    expected = 0.75 * soft_cross_entropy(logits, targets) + 0.25 * distillation(logits, targets, 2.0)
    torch.testing.assert_close(objective(recipe, logits, targets, targets), expected)
    assert objective(recipe, logits, targets, None) == soft_cross_entropy(logits, targets)


def test_only_matrices_decay(make_vit):
    model = make_vit(init_values=1e-5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in (decayed, plain))
    block = [f"blocks.{i}.{part}.weight" for i in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert decayed == {"patch_embed.proj.weight", "head.weight", *block}
    assert plain == set(names.values()) - decayed
    assert {"cls_token", "pos_embed", "norm.weight", "head.bias", "blocks.1.ls2.gamma"} <= plain


def test_frozen_parameters_are_left_out(make_vit):
    model = make_vit()
    model.pos_embed.requires_grad_(False)
    groups = parameter_groups(model, 0.05)
    assert not any(p is model.pos_embed for group in groups for p in group["params"])
    model.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter to train"):
        parameter_groups(model, 0.05)


def _updater(model, recipe):
    return Updater.create(model, recipe, AmpPolicy(), None, Ranks())


def test_an_update_is_torchs_adamw(make_vit, make_recipe, stream):
    recipe = make_recipe(clip_grad=0.5, weight_decay=0.1, label_smoothing=0.1)
    ours, theirs = make_vit().eval(), make_vit().eval()
    updater = _updater(ours, recipe)
    optimizer = torch.optim.AdamW(parameter_groups(theirs, 0.1), lr=2e-3, betas=recipe.betas, eps=recipe.eps)
    for images, targets in stream.epoch(0):
        loss, right, count, norm = updater.backward(images, targets)
        updater.update(2e-3, norm)
        optimizer.zero_grad()
        logits = theirs(images)
        expected = F.cross_entropy(logits, targets, label_smoothing=0.1)
        expected.backward()
        expected_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(norm, expected_norm)
        assert right == (logits.argmax(-1) == targets.argmax(-1)).sum()
        assert count == len(images)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_clipping_bounds_the_norm_and_zero_switches_it_off(make_vit, make_recipe, stream, clip):
    model = make_vit()
    updater = _updater(model, make_recipe(clip_grad=clip))
    *_, norm = updater.backward(*next(stream.epoch(0)))
    updater.update(1e-3, norm)
    after = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert norm > 0.1
    assert after == pytest.approx(clip or float(norm), rel=1e-3)


def test_targets_of_another_number_of_classes_are_refused(make_vit, make_recipe, stream):
    updater = _updater(make_vit(num_classes=7), make_recipe())
    with pytest.raises(InputError, match=r"expected: targets \[16, 7\]\n  found: targets \[16, 4\]"):
        updater.backward(*next(stream.epoch(0)))


def _matrices():
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 8), (8, 24), (8, 8), (24, 8), (1, 8)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("lr", [0.02, torch.tensor(0.02)], ids=["number", "tensor"])
def test_muon_is_torchs(lr):
    ours, theirs, generator = _matrices(), _matrices(), torch.Generator().manual_seed(1)
    optimizer = Muon(ours, lr=lr, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = b.grad = torch.randn(a.shape, generator=generator) * 10.0**step
        ours[2].grad = theirs[2].grad = None  # as of a matrix that the loss does not see
        optimizer.step()
        reference.step()
    for a, b, start in zip(ours, theirs, _matrices(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        assert torch.equal(a, start) == (a is ours[2])
        assert optimizer.state[a].keys() == reference.state[b].keys()


def test_orthogonal_matrices_keep_directions_and_lose_sizes():
    sizes = torch.tensor([1e-3, 1, 1e3])[:, None, None]
    matrices = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0)) * sizes
    for found in (orthogonal(matrices), orthogonal(matrices.mT).mT):
        sizes = torch.linalg.svdvals(found.float())
        assert sizes.min() > 0.5
        assert sizes.max() < 1.3
        left = torch.einsum("nij,nkj->nik", found.float(), matrices)  # about U S U^T: symmetric, and positive
        assert (left - left.mT).norm() < 0.1 * left.norm()
        assert all(torch.linalg.eigvalsh(each + each.T).min() > 0 for each in left)
