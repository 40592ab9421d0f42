"""Sorting hidden units changes their order and nothing else."""

from __future__ import annotations

import pytest
import torch

from tests.strategies import make_images, make_model
from vitsparse.errors import InputError
from vitsparse.model.config import ViTConfig
from vitsparse.model.neurons import sort_neurons

CONFIG = ViTConfig(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=16, depth=2, num_heads=2)


def test_the_function_stays_and_the_norms_descend():
    model, images = make_model(CONFIG, dtype=torch.float64), make_images(CONFIG, 3, dtype=torch.float64)
    ordered = sort_neurons(model)
    torch.testing.assert_close(ordered(images), model(images), rtol=1e-12, atol=1e-12)
    for block in ordered.blocks:
        size = block.mlp.fc1.weight.norm(dim=1) * block.mlp.fc2.weight.norm(dim=0)
        assert (size.diff() <= 0).all()
    assert not torch.equal(ordered.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)


def test_given_scores_decide_and_ties_keep_their_order():
    model = make_model(CONFIG)
    scores = [torch.zeros(CONFIG.mlp_hidden) for _ in range(CONFIG.depth)]
    scores[1][5] = 1.0
    ordered = sort_neurons(model, scores)
    assert torch.equal(ordered.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)
    expected = [5, 0, 1, 2, 3, 4, *range(6, CONFIG.mlp_hidden)]
    assert torch.equal(ordered.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight[expected])


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=rf"found: {CONFIG.depth} of shapes \(3,\)$"):
        sort_neurons(make_model(CONFIG), [torch.zeros(3)] * CONFIG.depth)
