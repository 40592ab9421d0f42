"""Decode images once, into a memory map beside a manifest, and find it again.

A folder of the cache holds one decoded part of a data set: ``images.npy`` uint8 [N, 64, 64, 3], ``labels.safetensors``
(``labels``, ``numbers`` int64 [N]) and ``manifest.json``, which says what they were made from, which files were
skipped, and the sha256 of everything. It is written aside and renamed, so it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..circuit.files import read_json, read_tensors, sha256_of, write_json, write_tensors
from ..errors import InputError
from .archives import Item, Source

FORMAT, VERSION = "vitsparse.images", 1
SIDE = 64
ROWS_AT_ONCE = 512
FILES = {"images": "images.npy", "labels": "labels.safetensors"}


@dataclass(frozen=True, eq=False)
class Decoded:
    """``images`` uint8 [N, 64, 64, 3] (read-only memory map), ``labels`` and ``numbers`` int64 [N], names skipped."""

    images: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    skipped: tuple[str, ...]


def decoded(source: Source, part: str, num_classes: int, cache: Path) -> Decoded:
    """The images of ``part`` ("train" or "val") with labels below ``num_classes``, ordered by image number, then label.

    So any prefix is class-balanced, whatever the source. Decodes unless the cache holds them already, made from files
    of the same name, size and time of change. Images that cannot be decoded are left out and named; an image of the
    wrong size raises :class:`InputError`.
    """
    items = sorted(source.items(part, num_classes), key=lambda item: (item.number, item.label))
    if not items:
        raise InputError("there are no images", where=source.path, expected=f"images of {part}")
    key = {"part": part, "classes": [wnid for wnid, _ in source.classes[:num_classes]],
           "source": hashlib.sha256(repr(source.stamps(part, items)).encode()).hexdigest()}
    folder = cache / f"tiny_imagenet-{part}-{num_classes}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return _open(folder, key)
    shutil.rmtree(folder, ignore_errors=True)  # nothing there, or not whole
    with _written_aside(folder) as temporary:
        _decode_into(temporary, source, part, items, key)
    return _open(folder, key)


def verify(folder: str | os.PathLike) -> None:
    """Compare the sha256 of the files in one folder of the cache with its manifest; raises :class:`InputError`."""
    folder = Path(folder)
    manifest = _manifest(folder)
    for name, file in FILES.items():
        found = sha256_of(folder / file)
        if found != manifest[name]["sha256"]:
            raise InputError("a decoded file has changed", where=folder / file, expected=manifest[name]["sha256"],
                             found=found, remedy="remove the folder: it is made anew from the source")


def decode(encoded: bytes, name: str) -> np.ndarray | None:
    """uint8 [64, 64, 3] of a JPEG or PNG, greyscale spread over the channels; None where it is damaged.

    The size is checked before any pixel is decoded; another one raises :class:`InputError` naming the file.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
            if image.size != (SIDE, SIDE):
                raise InputError("an image has the wrong size", where=name, expected=f"{SIDE}x{SIDE} pixels",
                                 found="{}x{}".format(*image.size))
            return np.asarray(image.convert("RGB"))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError("an image has the wrong size", where=name, expected=f"{SIDE}x{SIDE} pixels",
                         found=error) from error
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for files that are damaged or something else
        return None


def _decode_into(folder: Path, source: Source, part: str, items: Sequence[Item], key: dict) -> None:
    images = _new_map(folder / FILES["images"], len(items))
    whole = np.zeros(len(items), dtype=bool)
    digests = np.zeros((len(items), 32), dtype=np.uint8)
    for position, encoded, pixels in _decode_all(source, part, items):
        digests[position] = np.frombuffer(hashlib.sha256(encoded).digest(), dtype=np.uint8)
        if pixels is not None:
            images[position], whole[position] = pixels, True
    if not whole.any():
        raise InputError("no image could be decoded", where=source.path, expected="JPEG or PNG images of 64x64 pixels")
    if not whole.all():
        _keep_rows(folder / FILES["images"], images, np.flatnonzero(whole))
    images.flush()
    kept = [item for item, fine in zip(items, whole, strict=True) if fine]
    write_tensors(folder / FILES["labels"], {
        "labels": np.array([item.label for item in kept], dtype=np.int64),
        "numbers": np.array([item.number for item in kept], dtype=np.int64)}, {"format": FORMAT})
    write_json(folder / "manifest.json", {
        "format": FORMAT, "version": VERSION, "key": key, "count": len(kept),
        "skipped": [item.name for item, fine in zip(items, whole, strict=True) if not fine],
        "source": {"kind": source.kind, "name": source.path.name, "sha256": hashlib.sha256(digests).hexdigest(),
                   "sha256_of": "the sha256 of each encoded image, by image number, then label"},
        **{name: {"bytes": (folder / file).stat().st_size, "sha256": sha256_of(folder / file)}
           for name, file in FILES.items()}})


def _decode_all(source: Source, part: str, items: Sequence[Item]) -> Iterator[tuple[int, bytes, np.ndarray | None]]:
    """(position, encoded bytes, pixels) of every item, in the order of the source; a progress bar on a terminal.

    In one thread: so small an image is decoded in 80 us, most of it under the interpreter's lock, and a second thread
    was measured to gain nothing.
    """
    from PIL import Image
    from tqdm.auto import tqdm

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for position, encoded in tqdm(source.read(part, items), desc=f"decoding {part}", unit=" images",
                                      total=len(items), disable=None):
            yield position, encoded, decode(encoded, f"{source.path}: {items[position].name}")


def _new_map(path: Path, count: int) -> np.memmap:
    """A memory map whose room on disk is reserved: writing to a map on a full disk would kill the process."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, SIDE, SIDE, 3))
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def _keep_rows(path: Path, images: np.memmap, rows: np.ndarray) -> None:
    """Replace the array at ``path`` by its ``rows``."""
    shorter = path.with_suffix(".kept")
    kept = _new_map(shorter, len(rows))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        chunk = rows[start:start + ROWS_AT_ONCE]
        kept[start:start + len(chunk)] = images[chunk]
    kept.flush()
    os.replace(shorter, path)


@contextlib.contextmanager
def _written_aside(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` when the block succeeds, and is removed when it does not."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
            temporary = Path(name) / "whole"
            temporary.mkdir()
            yield temporary
            if not folder.exists():  # else another process was faster, with the same content
                os.rename(temporary, folder)
    except InputError:
        raise
    except OSError as error:
        raise InputError("the decoded images cannot be written", where=folder.parent, found=error,
                         remedy="make room there, or choose another folder with cache=") from error


def _manifest(folder: Path) -> dict:
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise InputError("the manifest is of another format or version", where=folder / "manifest.json",
                         expected=f"{FORMAT} {VERSION}")
    return manifest


def _open(folder: Path, key: dict) -> Decoded:
    """What the cache holds under ``key``; raises :class:`InputError` unless sizes, shapes and counts agree."""
    manifest = _manifest(folder)
    sizes = {name: (folder / file).stat().st_size if (folder / file).exists() else None for name, file in FILES.items()}
    if manifest.get("key") != key or any(manifest[name]["bytes"] != size for name, size in sizes.items()):
        raise InputError("the decoded images do not fit their manifest", where=folder, found=sizes)
    images = np.load(folder / FILES["images"], mmap_mode="r", allow_pickle=False)
    tensors, _ = read_tensors(folder / FILES["labels"])
    if images.shape != (manifest["count"], SIDE, SIDE, 3) or any(len(t) != len(images) for t in tensors.values()):
        raise InputError("the decoded images differ from their manifest", where=folder, expected=manifest["count"],
                         found=images.shape)
    return Decoded(images, tensors["labels"], tensors["numbers"], tuple(manifest["skipped"]))
