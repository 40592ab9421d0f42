"""Trained weights by name: what the package knows of each, and where their files are found.

``pretrained.json`` pins every file by sha256 and size, so that no place need be trusted: what differs is never parsed.
A place is a folder or an https URL that holds ``NAME/FILE``. The first of these that is given is taken:

    weights=            the argument of create_model
    VITSPARSE_WEIGHTS   in the environment
    weights/            of the checkout that the package runs from, where it has the model
    the cache           what was once downloaded (``vitsparse/weights`` in the user's cache folder)

A name is ``architecture.tag``, as in timm; the architecture alone stands for its first entry in the file.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from ..circuit.files import atomic_path, default_cache, existing_file, read_json, sha256_of, write_json
from ..errors import InputError, MissingFile, nearest

FORMAT, VERSION = "vitsparse.pretrained", 1
INDEX_FILE = Path(__file__).with_name("pretrained.json")
CHECKOUT = Path(__file__).resolve().parents[2]
ENVIRONMENT = "VITSPARSE_WEIGHTS"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Stamp:
    """What a file must be: hex ``sha256`` and size in ``bytes``."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        return cls(sha256_of(path), path.stat().st_size)

    def __str__(self) -> str:
        return f"sha256 {self.sha256}, {self.bytes} bytes"


@dataclass(frozen=True)
class Pretrained:
    """An entry: ``architecture`` is "vit" or "sparse_vit"; ``model_args`` are the fields of a ViTConfig, beside
    ``num_classes``, that differ from what the name says; ``files`` maps the names of its files to their stamps."""

    architecture: str
    num_classes: int
    description: str
    model_args: Mapping[str, Any]
    files: Mapping[str, Stamp]

    @property
    def bytes(self) -> int:
        return sum(stamp.bytes for stamp in self.files.values())


def read_index(path: Path | None = None) -> dict[str, Pretrained]:
    """The entries by full name, in the order of the file (None: the package's)."""
    path = path or INDEX_FILE
    data = read_json(path)
    if not isinstance(data, dict) or (data.get("format"), data.get("version")) != (FORMAT, VERSION):
        raise InputError("this is no index of trained weights", where=path, expected=f"{FORMAT}, version {VERSION}")
    try:
        return {name: Pretrained(**{**entry, "files": {file: Stamp(**stamp) for file, stamp in entry["files"].items()}})
                for name, entry in data["models"].items()}
    except (AttributeError, LookupError, TypeError) as error:
        raise InputError("the index of trained weights is damaged", where=path, found=repr(error)) from error


def write_index(models: Mapping[str, Pretrained], path: Path) -> None:
    """The inverse of :func:`read_index`."""
    write_json(path, {"format": FORMAT, "version": VERSION,
                      "models": {name: asdict(entry) for name, entry in models.items()}})


def find(name: str) -> tuple[str, Pretrained]:
    """(full name, entry) of a full name or of an architecture; :class:`InputError` with the nearest for an unknown."""
    models = read_index()
    full = next((full for full in models if name in (full, full.partition(".")[0])), None)
    if full is None:
        alike = [full for full in models if full.partition(".")[0] == name.partition(".")[0]]
        raise InputError(f"no weights are known by the name {name!r}", where="name", found=name,
                         expected=" or ".join(alike) or "one of list_models(pretrained=True)",
                         remedy=nearest(name, alike or models) or
                         "leave out pretrained=True; checkpoint_path= and from_timm bring other weights")
    return full, models[full]


def fetch(name: str, entry: Pretrained, place: str | os.PathLike | None = None) -> Path:
    """The folder with the files of ``entry``, all checked; downloaded into the cache where the place is a URL."""
    place = place or os.environ.get(ENVIRONMENT)
    here, kept = CHECKOUT / "weights" / name, _kept(name, entry)
    if place and "://" in str(place):
        return _download_all(_base(str(place)), name, entry)
    if place:
        return _checked(Path(place).expanduser() / name, entry)
    # Beside an installed package lie other packages, and what they call "weights" is not ours.
    if here.is_dir() and (CHECKOUT / "pyproject.toml").is_file():
        return _checked(here, entry)
    if all((kept / file).is_file() for file in entry.files):
        return _checked(kept, entry)
    raise MissingFile(f"the files of {name} are not here", where=name, expected=", ".join(entry.files),
                      found=f"no weights=, no {ENVIRONMENT}, nothing in {here} and {kept}",
                      remedy=f"give weights=PLACE, or {ENVIRONMENT}=PLACE: a folder or an https URL with {name}/ in it")


def check(path: Path, stamp: Stamp, *, where: object = "") -> None:
    """Raise :class:`InputError` unless the file at ``path``, which came from ``where``, is the one of the stamp."""
    found = Stamp.of(existing_file(path))
    if found != stamp:
        raise InputError("the file is not the one that this version of vitsparse knows", where=where or path,
                         expected=stamp, found=found, remedy="copy or download it anew, or use the version that it "
                                                             "belongs to; folders of your own open as local-dir:FOLDER")


def _checked(folder: Path, entry: Pretrained) -> Path:
    if not folder.is_dir():
        raise MissingFile("the weights are not in this place", where=folder, expected=", ".join(entry.files),
                          remedy=f"name the folder (or URL) that holds {folder.name}/")
    for file, stamp in entry.files.items():
        check(folder / file, stamp)
    return folder


def _kept(name: str, entry: Pretrained) -> Path:
    """The place in the cache; named after the files' digests, so that versions with other files keep apart."""
    digest = hashlib.sha256(repr(sorted(entry.files.items())).encode()).hexdigest()
    return default_cache() / "weights" / f"{name}-{digest[:16]}"


def _base(url: str) -> str:
    try:
        parts = urlsplit(url)
        safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
    except ValueError:
        safe = False
    if not safe:
        raise InputError("weights are not fetched from such an address", where="weights", found=url,
                         expected="https://HOST/PATH, or a folder")
    return url.rstrip("/")


def _download_all(base: str, name: str, entry: Pretrained) -> Path:
    folder = _kept(name, entry)
    for file, stamp in entry.files.items():
        path = folder / file
        if not path.is_file() or Stamp.of(path) != stamp:
            _download(f"{base}/{name}/{file}", path, stamp)
    return folder


def _download(url: str, path: Path, stamp: Stamp) -> None:
    try:
        with atomic_path(path) as temporary:
            torch.hub.download_url_to_file(url, str(temporary), progress=sys.stderr.isatty())
            check(temporary, stamp, where=url)
    except (OSError, HTTPException) as error:
        raise InputError("the weights cannot be downloaded", where=url, expected=f"a file of {stamp.bytes} bytes",
                         found=error, remedy=f"try again, or copy the folder and give weights=FOLDER, {ENVIRONMENT}="
                         "FOLDER") from error
