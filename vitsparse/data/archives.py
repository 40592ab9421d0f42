"""Where the encoded images of Tiny ImageNet come from: a zip, an unpacked folder, or parquet shards.

A source lists its images (:class:`Item`) without decoding any, and hands out their bytes. Nothing it reads is believed:
members are taken by expected name, counts and sizes are checked before reading.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..circuit.files import existing, read_json
from ..errors import InputError, MissingFile

MAX_MEMBERS = 200_000  # the official archive has 120,609
MAX_TOTAL_BYTES = 2 * 2**30
MAX_FILE_BYTES = 16 * 2**20  # words.txt, the largest, has 2.7 MB
MAX_RATIO = 200  # of size to compressed size; text packs 5 times, JPEG not at all
WNID = re.compile(r"n\d{8}")
IMAGE_NAME = re.compile(r"[A-Za-z0-9]+_(\d{1,9})\.(jpe?g|png)", re.IGNORECASE)
Stamp = tuple[str, int, int]  # name, bytes, time of last change in ns: what tells that a file is still the same


@dataclass(frozen=True)
class Item:
    """One image: its place in the source, its label, and its number within the class (or within the validation set)."""

    name: str
    label: int
    number: int
    row: int = 0


class Source(Protocol):
    """What :mod:`vitsparse.data.tiny_imagenet` needs; ``classes`` are (wnid, name), sorted by wnid."""

    kind: str
    path: Path
    classes: tuple[tuple[str, str], ...]

    def items(self, part: str, num_classes: int) -> list[Item]:
        """The images of "train" or "val" with labels below ``num_classes``, in any order."""

    def read(self, part: str, items: Sequence[Item]) -> Iterator[tuple[int, bytes]]:
        """(position in ``items``, encoded bytes) in the order that is cheapest to read; b"" where unreadable."""

    def stamps(self, part: str, items: Sequence[Item]) -> list[Stamp]:
        """Of the files that hold ``items``, as :data:`Stamp`."""


class OfficialLayout:
    """The layout of the official archive, in a zip or unpacked.

    ``wnids.txt``, ``words.txt``, ``train/<wnid>/images/<wnid>_<number>.JPEG``, ``val/images/val_<number>.JPEG`` and
    ``val/val_annotations.txt`` (file name, wnid, box). The official test images have no labels and are not read.
    """

    def __init__(self, tree: Zip | Folder):
        self.tree, self.kind, self.path = tree, tree.kind, tree.path
        wnids = sorted(self._lines("wnids.txt"))
        if not wnids or len(set(wnids)) < len(wnids) or not all(WNID.fullmatch(wnid) for wnid in wnids):
            raise InputError("the list of classes is damaged", where=f"{self.path}: wnids.txt",
                             expected="one wnid (n and eight digits) a line, each once", found=wnids[:3])
        names = dict(line.split("\t", 1) for line in self._lines("words.txt") if "\t" in line)
        self.classes = tuple((wnid, names.get(wnid, wnid)) for wnid in wnids)

    def items(self, part: str, num_classes: int) -> list[Item]:
        return self._train_items(num_classes) if part == "train" else self._val_items(num_classes)

    def _train_items(self, num_classes: int) -> list[Item]:
        found = []
        for label, (wnid, _) in enumerate(self.classes[:num_classes]):
            folder = f"train/{wnid}/images"
            numbers = {name: image_number(name) for name in self.tree.names(folder)}
            if not numbers:
                raise MissingFile("a class has no training images", where=f"{self.path}: {folder}")
            found += [Item(f"{folder}/{name}", label, number) for name, number in numbers.items() if number is not None]
        return found

    def _val_items(self, num_classes: int) -> list[Item]:
        label_of = {wnid: label for label, (wnid, _) in enumerate(self.classes)}
        present = set(self.tree.names("val/images"))
        found = []
        for line in self._lines("val/val_annotations.txt"):
            name, wnid, *_ = [*line.split("\t"), ""]
            where, number = f"{self.path}: val/val_annotations.txt, {name}", image_number(name)
            if wnid not in label_of:
                raise InputError("a label is outside the classes", where=where, found=wnid,
                                 expected=f"one of the {len(label_of)} wnids of wnids.txt")
            if number is None or name not in present:
                raise MissingFile("an annotated image is not there", where=where,
                                  expected="val/images/val_<number>.JPEG")
            if label_of[wnid] < num_classes:
                found.append(Item(f"val/images/{name}", label_of[wnid], number))
        return found

    def read(self, part: str, items: Sequence[Item]) -> Iterator[tuple[int, bytes]]:
        return ((position, self.tree.read(item.name) or b"") for position, item in enumerate(items))

    def stamps(self, part: str, items: Sequence[Item]) -> list[Stamp]:
        return self.tree.stamps(["wnids.txt", *(item.name for item in items)])

    def _lines(self, name: str) -> list[str]:
        data = self.tree.read(name)
        if data is None:
            raise MissingFile("a file of the archive is missing or damaged", where=f"{self.path}: {name}")
        return [line for line in data.decode("utf-8", errors="replace").splitlines() if line]


class Folder:
    kind = "folder"

    def __init__(self, path: Path):
        self.path = path

    def names(self, folder: str) -> list[str]:
        directory = self.path / folder
        return os.listdir(directory) if directory.is_dir() else []

    def read(self, name: str) -> bytes | None:
        path = self.path / name
        try:
            return path.read_bytes() if path.stat().st_size <= MAX_FILE_BYTES else None
        except OSError:
            return None

    def stamps(self, names: Sequence[str]) -> list[Stamp]:
        return [file_stamp(self.path / name, name) for name in names]


class Zip:
    """Reads members by name, without unpacking; ``names`` are relative to the folder that holds ``wnids.txt``."""

    kind = "zip"

    def __init__(self, path: Path):
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise InputError("the file is not a whole zip archive", where=path, found=str(error),
                             remedy="its download may have been cut short: fetch it again") from error
        members = self.archive.infolist()
        self._check(members)
        lists = [member.filename for member in members if re.fullmatch(r"([^/]+/)?wnids\.txt", member.filename)]
        if not lists:
            raise MissingFile("the archive does not hold Tiny ImageNet", where=path,
                              expected="tiny-imagenet-200/wnids.txt")
        prefix = lists[0].removesuffix("wnids.txt")
        self.members = {member.filename.removeprefix(prefix): member for member in members
                        if member.filename.startswith(prefix) and not member.is_dir()}
        self.folders: dict[str, list[str]] = {}
        for name in self.members:
            folder, _, base = name.rpartition("/")
            self.folders.setdefault(folder, []).append(base)

    def names(self, folder: str) -> list[str]:
        return self.folders.get(folder, [])

    def read(self, name: str) -> bytes | None:
        try:
            return self.archive.read(self.members[name])
        # NotImplementedError is zipfile's word for a compression method that it does not know.
        except (KeyError, OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
            return None

    def stamps(self, names: Sequence[str]) -> list[Stamp]:
        return [file_stamp(self.path, self.path.name)]

    def _check(self, members: Sequence[zipfile.ZipInfo]) -> None:
        def refuse(what: str, expected: object, found: object, member: str = "") -> None:
            where = f"{self.path}: {member}" if member else self.path
            raise InputError(what, where=where, expected=expected, found=found)

        if len(members) > MAX_MEMBERS:
            refuse("the archive has too many members", f"at most {MAX_MEMBERS}", len(members))
        total = sum(member.file_size for member in members)
        if total > MAX_TOTAL_BYTES:
            refuse("the archive would unpack to too much", f"at most {MAX_TOTAL_BYTES} bytes", f"{total} bytes")
        name, count = next(iter(Counter(member.filename for member in members).most_common(1)), ("", 0))
        if count > 1:
            refuse("a member occurs more than once", "each name once", f"{count} times", name)
        for member in members:
            if member.file_size > MAX_FILE_BYTES:
                refuse("a member is too large", f"at most {MAX_FILE_BYTES} bytes", member.file_size, member.filename)
            if member.file_size > MAX_RATIO * max(member.compress_size, 1):
                refuse("a member is packed suspiciously well", f"at most {MAX_RATIO} times",
                       f"{member.file_size} bytes from {member.compress_size}", member.filename)
            if member.flag_bits & 1:
                refuse("a member is encrypted", "a plain archive", "an encrypted one", member.filename)


def file_stamp(path: Path, name: str) -> Stamp:
    """Name, size and time of last change."""
    status = existing(path).stat()
    return name, status.st_size, status.st_mtime_ns


def read_classes(path: Path) -> tuple[tuple[str, str], ...]:
    """(wnid, name) by label from ``classes.json``: a list of {"label", "wnid", "name"}, labels in order of wnid."""
    rows = read_json(path)
    fields = {"label", "wnid", "name"}
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) and fields <= row.keys() for row in rows)):
        raise InputError("the list of classes is damaged", where=path, expected='a list of {"label", "wnid", "name"}')
    wnids = [str(row["wnid"]) for row in rows]
    if [row["label"] for row in rows] != list(range(len(rows))) or sorted(set(wnids)) != wnids:
        raise InputError("the labels do not sort by wnid", where=path,
                         expected=f"0 to {len(rows) - 1} in order of wnid")
    return tuple((wnid, str(row["name"])) for wnid, row in zip(wnids, rows, strict=True))


def image_number(name: str) -> int | None:
    """123 of ``n01443537_123.JPEG``; None for a file that is no image."""
    match = IMAGE_NAME.fullmatch(name)
    return int(match[1]) if match else None
