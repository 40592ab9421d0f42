"""Intervals hold their level, and agree with what others compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vitsparse import InputError
from vitsparse.evaluation.intervals import paired_difference, right_answers, share_interval


@pytest.mark.parametrize(("right", "count"), [(0, 10), (5, 10), (10, 10), (480, 1000)])
def test_share_interval_is_wilsons(right, count):
    stats = pytest.importorskip("scipy.stats", reason="scipy, which computes it too, is not installed")
    theirs = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert share_interval(np.arange(count) < right) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_share_interval_covers_what_is_true():
    rng = np.random.default_rng(0)
    hits = [low <= 0.3 <= high for low, high in
            (share_interval(rng.random(200) < 0.3) for _ in range(2000))]
    assert 0.93 < np.mean(hits) < 0.97


def test_paired_difference_covers_what_is_true_and_is_narrower_than_two_intervals():
    """Two models that mostly agree: the one is right on 0.5 of the images, the other on 0.02 more."""
    rng, hits, widths = np.random.default_rng(0), [], []
    for _ in range(2000):
        u, v = rng.random(400), rng.random(400)
        theirs = u < 0.5
        ours = np.where(v < 0.05, ~theirs, theirs) | (v > 0.96)
        truth = 0.04 * 0.5  # flips cancel on average, the last are gained where theirs is wrong
        difference, low, high = paired_difference(ours, theirs)
        assert low <= difference <= high
        hits.append(low <= truth <= high)
        widths.append(high - low)
    assert 0.93 < np.mean(hits) < 0.97
    assert np.mean(widths) < 0.6 * 2 * 1.96 * (2 * 0.25 / 400) ** 0.5


def test_paired_difference_of_equal_answers_is_zero_within_little():
    right = np.arange(1000) % 2 == 0
    difference, low, high = paired_difference(right, right)
    assert difference == 0
    assert -0.003 < low < 0 < high < 0.003


def test_right_answers_are_those_of_the_single_images():
    class Biggest(nn.Module):
        def forward(self, images):
            return images.flatten(1)

    images, labels = torch.eye(4).view(4, 1, 2, 2), torch.tensor([0, 1, 3, 3])
    found = right_answers(Biggest(), [(images[:3], labels[:3]), (images[3:], labels[3:])])
    assert found.tolist() == [True, True, False, True]


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="no images"):
        right_answers(nn.Flatten(), [])
    with pytest.raises(InputError, match="same images"):
        paired_difference(np.ones(3, dtype=bool), np.ones(4, dtype=bool))
    with pytest.raises(InputError, match="nothing"):
        share_interval(np.ones(0, dtype=bool))
