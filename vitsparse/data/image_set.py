"""A labelled set of images as one value: pixels, labels, class names and the statistics that normalise them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ..errors import InputError


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """``images`` uint8 [N, H, W, C] (an array or a memory map) and ``labels`` int64 [N] below ``len(classes)``.

    ``mean`` and ``std`` [C] are in units of the pixel range [0, 1]. ``name`` and ``split`` say where the images come
    from. Raises :class:`InputError` where the parts do not fit together.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    split: str

    def __post_init__(self):
        self._check_array("images", self.images, np.uint8, 4)
        self._check_array("labels", self.labels, np.int64, 1)
        if len(self.images) != len(self.labels):
            raise InputError("images and labels differ in number", where=self._where,
                             expected=f"{len(self.images)} labels", found=len(self.labels))
        channels = self.images.shape[3]
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels or not np.isfinite(values).all():
                raise InputError(f"{field} does not fit the images", where=self._where,
                                 expected=f"{channels} finite values", found=values)
        if min(self.std) <= 0:
            raise InputError("std must be positive", where=self._where, found=self.std)
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))
        if len(outside):
            raise InputError("a label is outside the classes", where=f"{self._where}, image {outside[0]}",
                             expected=f"0 to {len(self.classes) - 1}", found=self.labels[outside[0]])

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        height, width, channels = self.images.shape[1:]
        return (f"ImageSet({self._where}: {len(self)} images of {height}x{width}x{channels}, "
                f"{len(self.classes)} classes)")

    def subset(self, indices) -> ImageSet:
        """The images at ``indices`` (a slice is a view; a list or bool mask copies the pixels it picks)."""
        return dataclasses.replace(self, images=self.images[indices], labels=self.labels[indices])

    def take_classes(self, count: int) -> ImageSet:
        """Only the images of the first ``count`` classes, in the same order."""
        check_class_count(count, len(self.classes))
        if count == len(self.classes):
            return self
        chosen = np.flatnonzero(self.labels < count)
        return dataclasses.replace(self.subset(chosen), classes=self.classes[:count])

    @property
    def _where(self) -> str:
        return f"{self.name}/{self.split}"

    def _check_array(self, field: str, array, dtype, ndim: int) -> None:
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim:
            found = f"{array.dtype} with {array.ndim}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"{field} has the wrong type", where=self._where,
                             expected=f"a numpy array, {np.dtype(dtype)} with {ndim} dimensions", found=found)
        if array.size == 0:
            raise InputError(f"{field} is empty", where=self._where, expected="at least one image",
                             found=f"shape {array.shape}")


def check_class_count(count: int, available: int) -> None:
    """Raise :class:`InputError` unless 1 <= ``count`` <= ``available``."""
    if not 1 <= count <= available:
        raise InputError("the number of classes is out of range", where="num_classes",
                         expected=f"1 to {available}", found=count)
