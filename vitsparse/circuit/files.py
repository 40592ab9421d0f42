"""Reading and writing files so that nothing is lost and nothing unchecked is believed.

Writes go to a temporary file beside the target, are flushed to disk and then renamed over it: after a crash or on a
full disk the old file is still whole. Reads are capped in size and name the file in every complaint.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import InputError, MissingFile

MAX_JSON_BYTES = 256 * 2**20


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path; on success fsync it and rename it to ``path``, on any error remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write ``data`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any, *, indent: int | None = 2) -> None:
    """Write ``value`` as JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of at most ``max_bytes``; raises :class:`InputError` naming file and position.

    Stricter than Python's parser: a name given twice in one object, NaN and infinity are refused.
    """
    path = existing_file(path)
    if path.stat().st_size > max_bytes:
        raise InputError("the file is too large to be what it claims", where=path,
                         expected=f"at most {max_bytes} bytes", found=f"{path.stat().st_size} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError("the file is not valid JSON", where=path, found=str(error),
                         remedy="restore it from a copy or write it anew") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the name {twice!r} is given twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write numpy arrays as safetensors, atomically. ``metadata`` must map strings to strings."""
    write_bytes(path, tensor_bytes(tensors, metadata))


def tensor_bytes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The safetensors file of numpy arrays: the same bytes for the same content."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    return in_one_order(save(arrays, dict(metadata)))


def in_one_order(data: bytes) -> bytes:
    """A safetensors file with its metadata sorted: the library writes it in another order each time."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8: 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size:]


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a safetensors file: arrays by name, and its metadata. Never reads pickle."""
    path = existing_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        raise InputError("the file is not a readable safetensors file", where=path, found=str(error),
                         remedy="restore it from a copy or write it anew") from error


def sha256_of(path: str | os.PathLike) -> str:
    """Hex sha256 of a file's bytes."""
    with open(existing_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def existing(path: str | os.PathLike) -> Path:
    """``path`` as a Path, or :class:`MissingFile`."""
    path = Path(path)
    if not path.exists():
        # The folder of a run is easily given for that of one of its models.
        deeper = sorted(path.parent.glob(f"*/{glob.escape(path.name)}"))[:4]
        raise MissingFile("the file does not exist", where=path, remedy="check the path" if not deeper else
                          f"check the path; there is {', '.join(map(str, deeper))}")
    return path


def existing_file(path: str | os.PathLike) -> Path:
    """``path`` as a Path; :class:`MissingFile` where there is nothing, :class:`InputError` where there is a folder."""
    path = existing(path)
    if path.is_dir():
        raise InputError("a file is needed, not a folder", where=path, expected="a file", found="a folder",
                         remedy="name the file in it")
    return path


def default_cache() -> Path:
    """``vitsparse`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitsparse"


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; not every file system allows it, and then there is nothing to do."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
