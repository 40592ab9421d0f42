from __future__ import annotations

import functools

import pytest
import torch
from scipy import stats

from vitsparse.data import draws
from vitsparse.data.mixing import Mix, beta, draw_mix, mix

SIZE = (16, 12)


@pytest.fixture
def uniform():
    return functools.partial(draws.uniform, 3, 1, torch.arange(4000))


@pytest.fixture
def batch():
    return torch.rand(4, 3, *SIZE), torch.eye(5)[[0, 3, 3, 1]]


def mix_whole(images, targets, parameters):
    """A whole batch, in which the partner of the first image is the last one."""
    return mix(*(torch.cat([values[-1:], values]) for values in (images, targets)), parameters)


def test_mixup_equals_torchvision(batch, v2):
    images, targets = batch
    share = 0.3
    ours = mix_whole(images, targets, Mix(torch.full((4,), share), torch.zeros(4, 4, dtype=torch.int64)))
    parameters = {"lam": float(torch.tensor(share)), "labels": targets, "batch_size": 4}
    assert torch.equal(ours[0], v2.MixUp(num_classes=5).transform(images, parameters))
    assert torch.equal(ours[1], v2.MixUp(num_classes=5).transform(targets, parameters))


def test_cutmix_equals_torchvision(batch, v2):
    images, targets = batch
    top, left, height, width = 3, 0, 10, 7
    share = 1 - height * width / (SIZE[0] * SIZE[1])
    boxes = torch.tensor([[top, left, height, width]]).expand(4, 4)
    ours = mix_whole(images, targets, Mix(torch.full((4,), share), boxes))
    parameters = {"box": (left, top, left + width, top + height), "lam_adjusted": float(torch.tensor(share)),
                  "labels": targets, "batch_size": 4}
    assert torch.equal(ours[0], v2.CutMix(num_classes=5).transform(images, parameters))
    assert torch.equal(ours[1], v2.CutMix(num_classes=5).transform(targets, parameters))


def test_every_image_has_parameters_of_its_own(batch):
    images, targets = batch
    boxes = torch.tensor([[0, 0, 0, 0], [2, 3, 4, 5], [0, 0, 0, 0], [0, 0, *SIZE]])
    mixed, soft = mix_whole(images, targets, Mix(torch.tensor([1.0, 1 - 20 / 192, 0.25, 0.0]), boxes))
    assert torch.equal(mixed[0], images[0])
    assert torch.equal(soft[0], targets[0])
    assert torch.equal(mixed[1, :, 2:6, 3:8], images[0, :, 2:6, 3:8])
    assert torch.equal(mixed[1, :, 6:], images[1, :, 6:])
    torch.testing.assert_close(mixed[2], 0.25 * images[2] + 0.75 * images[1])
    assert torch.equal(mixed[3], images[2])
    assert torch.equal(soft[3], targets[2])


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 3.0, 20.0])
def test_beta_follows_its_distribution(uniform, alpha):
    """Each half by itself: for small alpha many values lie closer to 1 than floating point can tell."""
    values = beta(uniform, "test", alpha).double()
    low = values[values < 0.5]
    assert abs(len(low) / 4000 - 0.5) < 4 * 0.5 / 4000**0.5
    assert stats.kstest(low.numpy(), lambda x: 2 * stats.beta(alpha, alpha).cdf(x)).pvalue > 1e-3
    assert values.var().item() == pytest.approx(1 / (8 * alpha + 4), rel=0.06)


def test_boxes_and_shares_agree_and_the_choice_follows_the_probabilities(uniform):
    parameters = draw_mix(uniform, (1.0, 0.8), 0.6, 0.25, SIZE)
    area = parameters.boxes[:, 2] * parameters.boxes[:, 3] / (SIZE[0] * SIZE[1])
    cut = area > 0
    torch.testing.assert_close(parameters.share[cut], 1 - area[cut])
    assert (parameters.boxes[:, :2] >= 0).all()
    assert (parameters.boxes[:, :2] + parameters.boxes[:, 2:] <= torch.tensor(SIZE)).all()
    mixed_up = ~cut & (parameters.share < 1)
    assert abs(mixed_up.double().mean() - 0.6 * 0.75) < 0.03
    assert 0.09 < cut.double().mean() < 0.6 * 0.25 + 0.02  # a small box may lose all its area to rounding


@pytest.mark.parametrize(("alphas", "has_boxes"), [((1.0, 0.0), True), ((0.0, 1.0), False)])
def test_one_alone_takes_all(uniform, alphas, has_boxes):
    parameters = draw_mix(uniform, alphas, 1.0, 0.5, SIZE)
    assert parameters.boxes.any() == has_boxes
    assert (parameters.share < 1).double().mean() > 0.8
