"""The handwritten digits that come inside scikit-learn: 1,797 greyscale images of 8x8 in ten classes.

They are the test half of the "Optical Recognition of Handwritten Digits" data set (Alpaydin and Kaynak 1998, UCI).
"""

from __future__ import annotations

import numpy as np
import torch

from ..errors import InputError
from . import draws
from .image_set import ImageSet

MEAN, STD = (0.3053,), (0.3760,)  # of the training split
PARTS = {"test": (0, 1 / 6), "val": (1 / 6, 1 / 3), "train": (1 / 3, 1)}  # shares of each class, in shuffled order


def load(split: str) -> ImageSet:
    """uint8 [N, 8, 8, 1], always split alike: of each class 2/3 train, 1/6 val, 1/6 test, in the original order."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("the digits come with scikit-learn, which is not installed", where="digits",
                         remedy="pip install 'vitsparse[digits]', or choose another data set") from error
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    chosen = np.sort(np.concatenate([_part_of_class(np.flatnonzero(labels == digit), split) for digit in range(10)]))
    return ImageSet(images[chosen], labels[chosen], tuple("0123456789"), MEAN, STD, "digits", split)


def _part_of_class(members: np.ndarray, split: str) -> np.ndarray:
    """The members of one class that belong to ``split``, by an order that depends on their data set index alone."""
    keys = draws.uniform(0, 0, torch.from_numpy(members), "digits", 1)[:, 0].numpy()
    start, stop = (round(share * len(members)) for share in PARTS[split])
    return members[np.argsort(keys, kind="stable")][start:stop]
