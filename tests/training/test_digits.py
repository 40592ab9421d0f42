"""Training on the real digits with the real, augmented stream."""

from __future__ import annotations

import pytest
import torch

from vitsparse.data import Augmentation, Batches, TrainStream, load
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import fingerprint
from vitsparse.training import Recipe, fit

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

AUGMENTATION = Augmentation(rotation_degrees=10, crop_scale=(0.8, 1.0), noise_std=0.02, mixup_alpha=0.2)
RECIPE = Recipe(epochs=2, batch_size=64, lr=3e-3, warmup_epochs=0.5)


@pytest.fixture(scope="module")
def digits():
    return load("digits", "train"), Batches(load("digits", "val"), 256)


def digit_stream(images, **changes):
    options = {"seed": 0, "num_classes": 10, "augmentation": AUGMENTATION}
    return TrainStream(images, 64, **(options | changes))


class Killed(Exception):
    """Raised in place of a kill."""


class Cut:
    """The first ``left`` batches of a stream, then an error."""

    def __init__(self, stream, left):
        self.stream, self.left = stream, left

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def epoch(self, epoch, start_step=0):
        for batch in self.stream.epoch(epoch, start_step):
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield batch


def test_augmented_training_resumes_to_the_same_bits(digits, make_vit, tmp_path, capfd):
    images, val = digits
    recipe = Recipe.from_dict(RECIPE.to_dict() | {"checkpoint_every_steps": 5})
    whole, parts = make_vit(num_classes=10), make_vit(num_classes=10)
    history = fit(whole, digit_stream(images), RECIPE, out=tmp_path / "whole", val_batches=val)
    with pytest.raises(Killed):
        fit(parts, Cut(digit_stream(images), 27), recipe, out=tmp_path / "parts", val_batches=val)
    torch.nn.init.zeros_(parts.head.weight)
    resumed = fit(parts, digit_stream(images), recipe, out=tmp_path / "parts", val_batches=val, resume=True)
    assert fingerprint(parts) == fingerprint(whole)
    assert [row.train_loss for row in resumed.epochs] == [row.train_loss for row in history.epochs]
    assert history.epochs[1].train_loss < history.epochs[0].train_loss
    assert capfd.readouterr().err == ""  # no progress bar where there is no terminal


@pytest.mark.parametrize(("change", "field"), [
    ({"seed": 1}, "stream.seed"), ({"augmentation": Augmentation()}, "stream.augmentation"),
])
def test_another_stream_is_refused_on_resume(digits, make_vit, tmp_path, change, field):
    images, _ = digits
    with pytest.raises(Killed):
        fit(make_vit(num_classes=10), Cut(digit_stream(images), 20), RECIPE, out=tmp_path)
    with pytest.raises(InputError, match=f": {field}\n"):
        fit(make_vit(num_classes=10), digit_stream(images, **change), RECIPE, out=tmp_path, resume=True)
