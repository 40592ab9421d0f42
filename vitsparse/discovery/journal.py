"""The journal of a search: an append-only file of what it found about each edge, so that a killed one goes on.

JSON lines. The header says which search it is, then one line per edge in the order of the search:

    {"format": "vitsparse.journal", "version": 1, "search": {"method": "acdc", "threshold": 0.05, ...}}
    {"edge": "m5->logits", "kept": false, "metric": 0.000123}

``metric`` is that of the circuit with the edge cut (null where it was no finite number); JSON numbers give a float
back bit by bit. A method that measures and does not decide writes ``{"edge": ..., "score": ...}``. Every line reaches
the operating system before the next edge is tried, so killing the process loses nothing; it reaches the disk at least
every :data:`SYNC_SECONDS`. A last line without its end is what a crash leaves: it is ignored.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..circuit.files import write_text
from ..data.ranks import ranks
from ..errors import InputError
from .identity import check_same_search

FORMAT, VERSION = "vitsparse.journal", 1
SYNC_SECONDS = 1.0


@dataclass(frozen=True)
class Decision:
    """One line: was ``edge`` kept, and ``metric`` of the circuit without it (NaN where it was no finite number)."""

    TYPES: ClassVar = {"kept": bool, "metric": float}

    edge: str
    kept: bool
    metric: float

    @property
    def holds(self) -> bool:
        """Whether it can be: only an edge that was kept has no metric."""
        return self.kept or math.isfinite(self.metric)


@dataclass(frozen=True)
class Score:
    """One line: how much cutting ``edge`` alone hurts."""

    TYPES: ClassVar = {"score": float}

    edge: str
    score: float

    @property
    def holds(self) -> bool:
        """Whether it can be."""
        return math.isfinite(self.score)


class Journal:
    """An open journal: ``lines`` written by earlier runs, and :meth:`record` for the next ones. A context manager.

    ``search`` identifies the search in plain JSON values; ``order`` names the edges in the order of the search;
    ``kind`` is what a line says. With ``path`` None nothing is read or written. Under torchrun the first rank reads and
    writes, and tells the others. Raises :class:`InputError` when the file is no journal, is damaged, is of another
    search, or is being written by another process; ``OSError`` when the disk is full, with everything recorded before
    safe.
    """

    def __init__(self, path: str | os.PathLike | None, search: Mapping[str, Any], order: Sequence[str],
                 kind: type[Decision] | type[Score] = Decision):
        self._kind, self._file, self.lines = kind, None, []
        if path is not None and ranks().is_first:
            self._open(Path(path), search, order)
        numbers = ranks().gather([number for line in self.lines for number in astuple(line)[1:]])[0]
        rows = zip(*(numbers[first:: len(kind.TYPES)] for first in range(len(kind.TYPES))))
        self.lines = [kind(edge, *(make(number) for make, number in zip(kind.TYPES.values(), row)))
                      for edge, row in zip(order, rows)]

    def record(self, line: Decision | Score) -> None:
        """Append one line."""
        if self._file is None:
            return
        text = _line({name: None if isinstance(value, float) and not math.isfinite(value) else value
                      for name, value in asdict(line).items()}).encode()
        try:
            written = os.write(self._file, text)
            if written < len(text):  # a disk that fills up takes the first part; asking again says why
                os.write(self._file, text[written:])
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise OSError(error.errno, f"the journal cannot be written ({error.strerror}); every edge recorded before "
                          "is safe: make room and start the same search again", str(self.path)) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is None:
            return
        try:
            if kind is None:
                self._sync()
        finally:
            os.close(self._file)

    def _open(self, path: Path, search: Mapping[str, Any], order: Sequence[str]) -> None:
        self.path = path
        if not path.exists() or path.stat().st_size == 0:
            # Written under another name and renamed, so that a journal never exists without its whole header.
            write_text(path, _line({"format": FORMAT, "version": VERSION, "search": dict(search)}))
        self._file = os.open(path, os.O_RDWR | os.O_APPEND)
        self._synced = time.monotonic()
        try:
            self._lock()
            self.lines = self._read(search, order)
        except BaseException:
            os.close(self._file)
            raise

    def _sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError("the journal is in use by another process", where=self.path,
                             remedy="wait for that search, or give this one its own journal") from error

    def _read(self, search: Mapping[str, Any], order: Sequence[str]) -> list[Decision] | list[Score]:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].split(b"\n")[:-1]
        self._check_header(lines[0] if lines else b"", search)
        found = [self._parsed(line, number, order) for number, line in enumerate(lines[1:])]
        if whole < len(content):
            os.ftruncate(self._file, whole)
        return found

    def _check_header(self, line: bytes, search: Mapping[str, Any]) -> None:
        header = _parse(line)
        if not isinstance(header, dict) or header.get("format") != FORMAT or not isinstance(header.get("search"), dict):
            raise InputError("the file is not a journal of a search", where=self.path, expected=f'"format": "{FORMAT}"',
                             remedy="give a path that does not exist yet")
        if header.get("version") != VERSION:
            raise InputError("a journal of another version", where=f"{self.path}: version", expected=VERSION,
                             found=header.get("version"), remedy="start anew with another path")
        check_same_search(header["search"], search, self.path)

    def _parsed(self, text: bytes, number: int, order: Sequence[str]) -> Decision | Score:
        entry, edge = _parse(text), order[number] if number < len(order) else None
        line = _from_entry(self._kind, entry)
        if line is None or line.edge != edge:
            raise InputError("a line of the journal is damaged", where=f"{self.path}: line {number + 2}",
                             expected=f"a decision about {edge}" if edge else "no line after the last edge",
                             found=text[:200].decode(errors="replace"), remedy="cut the file before this line")
        return line


def _from_entry(kind: type[Decision] | type[Score], entry: Any) -> Decision | Score | None:
    """The line that a JSON value says; None where it says none."""
    if not isinstance(entry, dict) or set(entry) != {"edge", *kind.TYPES}:
        return None
    line = kind(**{name: math.nan if value is None else value for name, value in entry.items()})
    fits = all(isinstance(getattr(line, name), expected) for name, expected in kind.TYPES.items())
    return line if fits and line.holds else None


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
