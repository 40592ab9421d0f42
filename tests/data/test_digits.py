from __future__ import annotations

import sys

import numpy as np
import pytest

from vitsparse import data
from vitsparse.data import digits
from vitsparse.errors import InputError

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def splits() -> dict[str, data.ImageSet]:
    return {split: data.load("digits", split) for split in data.SPLITS}


def test_the_splits_share_out_all_images_class_by_class(splits):
    assert {split: len(images) for split, images in splits.items()} == {"train": 1198, "val": 300, "test": 299}
    for split, share in (("train", 4 / 6), ("val", 1 / 6), ("test", 1 / 6)):
        per_class = np.bincount(splits[split].labels, minlength=10)
        total = sum(np.bincount(other.labels, minlength=10) for other in splits.values())
        assert np.abs(per_class - share * total).max() < 1


def test_the_images_are_those_of_scikit_learn(splits):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = np.concatenate([s.images.reshape(len(s), -1) for s in splits.values()])
    labels = np.concatenate([s.labels for s in splits.values()])
    ours = np.column_stack([np.rint(rows * (16 / 255)), labels])
    theirs = np.column_stack([bunch.data, bunch.target])
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    assert rows.min() == 0
    assert rows.max() == 255


def test_mean_and_std_are_those_of_the_training_images(splits):
    pixels = splits["train"].images / 255
    assert digits.MEAN[0] == pytest.approx(pixels.mean(), abs=1e-4)
    assert digits.STD[0] == pytest.approx(pixels.std(), abs=1e-4)


def test_loading_twice_gives_the_same(splits):
    again = data.load("digits", "val")
    assert np.array_equal(again.images, splits["val"].images)
    assert np.array_equal(again.labels, splits["val"].labels)


def test_num_classes_takes_the_first(splits):
    few = data.load("digits", "test", num_classes=3)
    assert few.classes == ("0", "1", "2")
    assert np.array_equal(few.images, splits["test"].images[splits["test"].labels < 3])


@pytest.mark.parametrize(("name", "split", "message"), [
    ("digit", "train", r"data set is not known[\s\S]*digits, tiny_imagenet[\s\S]*did you mean 'digits'"),
    ("tiny-imagenet", "train", "did you mean 'tiny_imagenet'"),
    ("digits", "valid", r"split is not known[\s\S]*did you mean 'val'")])
def test_unknown_names_suggest_the_nearest(name, split, message):
    with pytest.raises(InputError, match=message):
        data.load(name, split)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"scikit-learn[\s\S]*pip install 'vitsparse\[digits\]'"):
        data.load("digits", "train")
