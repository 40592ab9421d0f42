"""The one check that everything taking ``batches`` shares."""

from __future__ import annotations

from typing import Any

from ..errors import InputError


def check_batches(batches: Any) -> None:
    """Refuse what can be read only once: ``batches`` is a re-iterable of (images, labels), as a list or DataLoader."""
    if not hasattr(batches, "__iter__"):
        raise InputError("batches must be iterable", where="batches", found=type(batches).__name__,
                         expected="a list or DataLoader of (images, labels)")
    if iter(batches) is batches:
        raise InputError("batches can be read only once", where="batches",
                         expected="a re-iterable such as a list or a DataLoader", found=type(batches).__name__,
                         remedy="wrap it: list(batches)")
