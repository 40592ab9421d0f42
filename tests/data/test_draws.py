from __future__ import annotations

import math

import pytest
import torch

from vitsparse.data import draws

INDICES = torch.arange(1000)
MASK = 2**64 - 1


def mix(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
    return word ^ word >> 31


def test_the_finaliser_is_splitmix64():
    """The first three outputs of the published generator for seed 1234567 are known."""
    golden = 0x9E3779B97F4A7C15
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    words = torch.tensor([draws._signed(1234567 + (i + 1) * golden) for i in range(3)])
    assert [int(word) % 2**64 for word in draws._mix(words)] == known
    assert [mix(1234567 + (i + 1) * golden & MASK) for i in range(3)] == known


def test_uniform_equals_the_definition_in_exact_integers():
    golden, state = 0x9E3779B97F4A7C15, 0
    for value in (-3, 7, draws._purpose_number("crop"), 12345):
        state = mix(state + value + golden & MASK)
    expected = [(mix(state + (j + 1) * golden & MASK) >> 40) * 2.0**-24 for j in range(5)]
    assert draws.uniform(-3, 7, torch.tensor([12345]), "crop", 5)[0].tolist() == expected


@pytest.mark.parametrize("draw", [draws.uniform, draws.normal])
def test_draws_do_not_depend_on_the_company_of_an_index(draw):
    together = draw(1, 2, INDICES, "noise", 11)
    shuffled = torch.randperm(1000)[:37]
    assert torch.equal(draw(1, 2, shuffled, "noise", 11), together[shuffled])
    assert torch.equal(draw(1, 2, INDICES, "noise", 5), together[:, :5])


@pytest.mark.parametrize("other", [(2, 2, INDICES, "noise"), (1, 3, INDICES, "noise"), (1, 2, INDICES + 1, "noise"),
                                   (1, 2, INDICES, "flip"), (2, 1, INDICES, "noise")])
def test_every_argument_matters_and_neighbours_are_uncorrelated(other):
    one = draws.uniform(1, 2, INDICES, "noise", 100).flatten()
    two = draws.uniform(*other, 100).flatten()
    correlation = torch.corrcoef(torch.stack([one, two]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(one.numel())


def test_uniform_is_uniform():
    values = draws.uniform(0, 0, INDICES, "test", 1000).double()
    n = values.numel()
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 4 * math.sqrt(1 / 12 / n)
    assert abs(values.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
    counts = torch.histc(values, bins=256, min=0, max=1)
    assert abs(((counts - n / 256).square() / (n / 256)).sum() - 255) < 4 * math.sqrt(2 * 255)


def test_normal_is_normal():
    values = draws.normal(0, 0, INDICES, "test", 1001).double()
    n = values.numel()
    assert values.shape == (1000, 1001)
    assert abs(values.mean()) < 4 / math.sqrt(n)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(values.pow(4).mean() - 3) < 4 * math.sqrt(96 / n) + 0.01  # the table has no tail beyond 4.4
    assert 4 < values.abs().max() < 4.4
    assert abs((values < 1).double().mean() - 0.841345) < 4 * math.sqrt(0.1335 / n)


def test_columns_of_one_key_are_uncorrelated():
    for draw in (draws.uniform, draws.normal):
        correlation = torch.corrcoef(draw(5, 0, torch.arange(5000), "test", 8).T) - torch.eye(8)
        assert correlation.abs().max() < 4.5 / math.sqrt(5000)


def test_permutation_visits_every_image_once_in_another_order_each_epoch():
    first, second = draws.permutation(0, 0, 1000), draws.permutation(0, 1, 1000)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(first, draws.permutation(0, 0, 1000))
    assert (first == second).sum() < 10
    assert (first == draws.permutation(1, 0, 1000)).sum() < 10


@pytest.mark.gpu
@pytest.mark.parametrize("draw", [draws.uniform, draws.normal])
def test_draws_are_the_same_on_the_gpu(draw):
    assert torch.equal(draw(1, 2, INDICES.cuda(), "noise", 100).cpu(), draw(1, 2, INDICES, "noise", 100))
