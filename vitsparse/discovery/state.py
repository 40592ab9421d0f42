"""The state of a long search: a file of arrays, written again and again, from which a killed search goes on.

Safetensors. The metadata says which search it is (plain JSON values, see :mod:`.identity`) and holds the sha256 of the
arrays. Each save replaces the file as a whole, so that after a crash or on a full disk the one before is still there.
A search that decides edge by edge keeps a :mod:`.journal` instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..circuit.files import read_tensors, write_tensors
from ..data.ranks import ranks
from ..errors import InputError
from .identity import check_same_search

FORMAT, VERSION = "vitsparse.search_state", 1
SAVE_SECONDS = 5.0


class State:
    """What a search needs to go on: ``arrays`` that an earlier run left (None: there was none), and :meth:`save`.

    ``search`` identifies the search in plain JSON values. With ``path`` None nothing is read or written. Raises
    :class:`InputError`, and leaves the file as it is, when it is no state, is damaged, or is of another search.
    """

    def __init__(self, path: str | os.PathLike | None, search: Mapping[str, Any]):
        self.path = None if path is None else Path(path)
        self._search = dict(search)
        self._saved = time.monotonic()
        self.arrays = None if self.path is None or not self.path.exists() else self._read()
        ranks().barrier()  # all have read before the first writes

    @property
    def due(self) -> bool:
        """Whether the last save is long enough ago (:data:`SAVE_SECONDS`) for another one."""
        return self.path is not None and time.monotonic() - self._saved >= SAVE_SECONDS

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write ``arrays`` in place of what was written before, atomically; only the first rank does."""
        if self.path is None or not ranks().is_first:
            return
        metadata = {"format": FORMAT, "version": str(VERSION), "search": json.dumps(self._search, allow_nan=False),
                    "sha256": _digest(arrays)}
        write_tensors(self.path, arrays, metadata)
        self._saved = time.monotonic()

    def _read(self) -> dict[str, np.ndarray]:
        arrays, metadata = read_tensors(self.path)
        if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
            raise InputError("the file is not the state of a search", where=self.path,
                             expected=f"{FORMAT} version {VERSION}",
                             found=f"{metadata.get('format')} version {metadata.get('version')}",
                             remedy="give a path that does not exist yet")
        if metadata.get("sha256") != _digest(arrays):
            raise InputError("the state of the search is damaged", where=self.path, found="arrays that have changed",
                             expected="the sha256 in its metadata", remedy="start anew with another path")
        try:
            written = dict(json.loads(metadata["search"]))
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise InputError("the state of the search is damaged", where=f"{self.path}: search", found=repr(error),
                             expected="a JSON object", remedy="start anew with another path") from error
        check_same_search(written, self._search, self.path)
        return arrays


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Hex sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
