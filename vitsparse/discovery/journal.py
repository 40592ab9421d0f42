"""The journal of a search: an append-only file of decisions, so that a killed search goes on where it was.

JSON lines. The header says which search it is, then one line per decided edge in the order of the search:

    {"format": "vitsparse.journal", "version": 1, "search": {"method": "acdc", "threshold": 0.05, ...}}
    {"edge": "m5->logits", "kept": false, "metric": 0.000123}

``metric`` is that of the circuit with the edge cut (null where it was no finite number); JSON numbers give a float
back bit by bit. Every line reaches the operating system before the next edge is tried, so killing the process loses
nothing; it reaches the disk at least every :data:`SYNC_SECONDS`. A last line without its end is what a crash leaves: it
is ignored.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..circuit.files import write_text
from ..errors import InputError

FORMAT, VERSION = "vitsparse.journal", 1
SYNC_SECONDS = 1.0


@dataclass(frozen=True)
class Decision:
    """One line: was ``edge`` kept, and ``metric`` of the circuit without it (NaN where it was no finite number)."""

    edge: str
    kept: bool
    metric: float


class Journal:
    """An open journal: ``decisions`` made by earlier runs, and :meth:`record` for the next ones. A context manager.

    ``search`` identifies the search in plain JSON values; ``order`` names the edges in the order of the search. Raises
    :class:`InputError` when the file is no journal, is damaged, is of another search, or is being written by another
    process; ``OSError`` when the disk is full, with everything recorded before safe.
    """

    def __init__(self, path: str | os.PathLike, search: Mapping[str, Any], order: Sequence[str]):
        self.path = Path(path)
        if not self.path.exists() or self.path.stat().st_size == 0:
            # Written under another name and renamed, so that a journal never exists without its whole header.
            write_text(self.path, _line({"format": FORMAT, "version": VERSION, "search": dict(search)}))
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND)
        self._synced = time.monotonic()
        try:
            self._lock()
            self.decisions = self._read(search, order)
        except BaseException:
            os.close(self._file)
            raise

    def record(self, decision: Decision) -> None:
        """Append one decision."""
        metric = decision.metric if math.isfinite(decision.metric) else None
        line = _line({"edge": decision.edge, "kept": decision.kept, "metric": metric}).encode()
        try:
            written = os.write(self._file, line)
            if written < len(line):  # a disk that fills up takes the first part; asking again says why
                os.write(self._file, line[written:])
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise OSError(error.errno, f"the journal cannot be written ({error.strerror}); every edge recorded before "
                          "is safe: make room and start the same search again", str(self.path)) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._sync()
        finally:
            os.close(self._file)

    def _sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError("the journal is in use by another process", where=self.path,
                             remedy="wait for that search, or give this one its own journal") from error

    def _read(self, search: Mapping[str, Any], order: Sequence[str]) -> list[Decision]:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].split(b"\n")[:-1]
        self._check_header(lines[0] if lines else b"", search)
        decisions = [self._decision(line, number, order) for number, line in enumerate(lines[1:])]
        if whole < len(content):
            os.ftruncate(self._file, whole)
        return decisions

    def _check_header(self, line: bytes, search: Mapping[str, Any]) -> None:
        header = _parse(line)
        if not isinstance(header, dict) or header.get("format") != FORMAT or not isinstance(header.get("search"), dict):
            raise InputError("the file is not a journal of a search", where=self.path, expected=f'"format": "{FORMAT}"',
                             remedy="give a path that does not exist yet")
        if header.get("version") != VERSION:
            raise InputError("a journal of another version", where=f"{self.path}: version", expected=VERSION,
                             found=header.get("version"), remedy="start anew with another path")
        written = header["search"]
        for field in [*search, *written]:
            if field not in written or field not in search or written[field] != search[field]:
                raise InputError("the journal is of another search", where=f"{self.path}: {field}",
                                 expected=f"{search.get(field)} (this search)",
                                 found=f"{written.get(field)} (the journal)",
                                 remedy="search as then, or give a path that does not exist yet")

    def _decision(self, line: bytes, number: int, order: Sequence[str]) -> Decision:
        entry = _parse(line)
        edge = order[number] if number < len(order) else None
        if not _is_decision(entry) or entry["edge"] != edge:
            raise InputError("a line of the journal is damaged", where=f"{self.path}: line {number + 2}",
                             expected=f"a decision about {edge}" if edge else "no line after the last edge",
                             found=line[:200].decode(errors="replace"), remedy="cut the file before this line")
        return Decision(edge, entry["kept"], math.nan if entry["metric"] is None else entry["metric"])


def _is_decision(entry: Any) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"edge", "kept", "metric"} or not isinstance(entry["kept"], bool):
        return False
    metric = entry["metric"]
    return entry["kept"] if metric is None else isinstance(metric, float) and math.isfinite(metric)


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
