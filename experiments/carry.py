"""Files on their way to a machine and back, where little travels at once: an archive in parts, each with its digest.

    python -m experiments.carry split PATH ... --into FOLDER --mib 42      FOLDER/1, FOLDER/2, ...: a part each
    python -m experiments.carry join FOLDER --into PLACE                   unpacks what is complete below FOLDER
    python -m experiments.carry models OUT --results RESULTS --into FOLDER what the cells left, most needed first

``join`` ends with status 3 while parts are missing. ``models`` takes what it has not taken before: a model that other
cells start from as it is, any other in float16, and no checkpoints.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from vitsparse import InputError, SparseViT
from vitsparse.circuit.files import read_json, sha256_of, write_bytes, write_json
from vitsparse.model.registry import open_folder
from vitsparse.model.weights import save_pretrained

from .cells import CELLS
from .narrow import ARCHITECTURE

FORMAT, VERSION, MIB = "vitsparse.carry", 1, 2**20
INCOMPLETE = 3  # the exit status
BESIDE = MIB // 2  # of a model's files without its weights
TAKEN = "taken"
"""A file in the folder of a cell whose model was taken; it travels along, so that nothing is brought back twice."""


def split(paths: Sequence[Path], folder: Path, limit: int) -> list[Path]:
    """An archive of ``paths`` (files or folders, by their last names) as files of at most ``limit`` bytes in
    ``folder``; the last one lists the others."""
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for path in paths:
                archive.add(path, arcname=path.name)
        whole.seek(0)
        name = hashlib.file_digest(whole, "sha256").hexdigest()[:8]
        whole.seek(0)
        parts = []
        while chunk := whole.read(limit):
            parts.append(folder / f"{name}.{len(parts) + 1}")
            write_bytes(parts[-1], chunk)
    write_json(folder / f"{name}.json", {"format": FORMAT, "version": VERSION, "parts": [
        {"name": part.name, "sha256": sha256_of(part)} for part in parts]})
    return [*parts, folder / f"{name}.json"]


def split_for_trips(paths: Sequence[Path], folder: Path, limit: int) -> list[Path]:
    """``folder/1``, ``folder/2``, ...: one part in each, with the list of all."""
    shutil.rmtree(folder, ignore_errors=True)
    *parts, listed = split(paths, folder, limit)
    trips = [folder / str(number + 1) for number in range(len(parts))]
    for trip, part in zip(trips, parts, strict=True):
        trip.mkdir()
        shutil.copy(listed, trip)
        part.rename(trip / part.name)
    listed.unlink()
    return trips


def join(folder: Path, into: Path) -> list[str]:
    """Unpack every archive below ``folder`` of which all is there; the names of parts that are missing.

    Raises :class:`InputError` for a part that is not what was sent.
    """
    missing = []
    for lists in {path.name: path for path in folder.rglob("*.json")}.values():
        listed = read_json(lists)
        if not isinstance(listed, dict) or (listed.get("format"), listed.get("version")) != (FORMAT, VERSION):
            continue
        names = {part["name"]: part["sha256"] for part in listed["parts"]}
        found = {path.name: path for path in folder.rglob("*") if path.name in names}
        missing += [name for name in names if name not in found]
        if len(found) == len(names):
            _unpack([(found[name], digest) for name, digest in names.items()], into)
    return missing


def _unpack(parts: Sequence[tuple[Path, str]], into: Path) -> None:
    with tempfile.TemporaryFile() as whole:
        for path, digest in parts:
            if (found := sha256_of(path)) != digest:
                raise InputError("a part was damaged on its way", where=path, expected=f"sha256 {digest}",
                                 found=f"sha256 {found}", remedy="bring it again")
            with open(path, "rb") as part:
                shutil.copyfileobj(part, whole)
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(into, filter="data")


def models(out: Path, results: Path, folder: Path, *, limit: int, part: int) -> tuple[list[str], list[str]]:
    """Put models of finished cells into ``folder``, ``limit`` bytes at most, in parts of at most ``part``.

    Returns the names of those taken, and of those for which there was no room.
    """
    needed = Counter(name for cell in CELLS for name in cell.needs)
    taken, left = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for cell in sorted(CELLS, key=lambda cell: -needed[cell.name]):
            if not (results / f"{cell.name}.json").exists() or not _is_new(out / cell.name):
                continue
            exact = cell.name in needed or _is_narrow(out / cell.name)
            size = (out / cell.name / "model.safetensors").stat().st_size // (1 if exact else 2) + BESIDE
            if size > limit:
                left.append(cell.name)
                continue
            _stage(out / cell.name, Path(temporary) / cell.name, exact=exact)
            taken.append(cell.name)
            limit -= size
        if taken:
            split([Path(temporary) / name for name in taken], folder, part)
    for name in taken:
        (out / name / TAKEN).touch()
    return taken, left


def _is_new(cell: Path) -> bool:
    model, mark = cell / "model.safetensors", cell / TAKEN
    return model.exists() and not (mark.exists() and mark.stat().st_mtime_ns >= model.stat().st_mtime_ns)


def _is_narrow(cell: Path) -> bool:
    """Whether its model is of a kind that the package has no files for."""
    return read_json(cell / "config.json").get("architecture") == ARCHITECTURE


def _stage(cell: Path, staged: Path, *, exact: bool) -> None:
    """What is taken of a cell's folder."""
    staged.mkdir()
    if exact:
        for name in ("config.json", "circuit.json", "model.safetensors"):
            if (cell / name).exists():
                shutil.copy2(cell / name, staged)
    else:
        model = open_folder(cell)
        save = model.save_pretrained if isinstance(model, SparseViT) else partial(save_pretrained, model)
        save(staged, dtype=torch.float16)
    (staged / TAKEN).touch()


def main(argv: Sequence[str]) -> int:
    parser = _parser()
    given = parser.parse_args(argv)
    if given.verb == "models" and given.results is None:
        parser.error("models: --results is needed")
    limit = round(given.mib * MIB)
    try:
        if given.verb == "split":
            trips = split_for_trips(given.paths, given.into, limit)
            print("\n".join(map(str, trips)))
        elif given.verb == "join":
            if missing := join(given.paths[0], given.into):
                print(f"still to come: {', '.join(missing)}")
                return INCOMPLETE
        else:
            taken, left = models(given.paths[0], given.results, given.into, limit=limit, part=round(given.part * MIB))
            print(f"models taken: {', '.join(taken) or 'none'}")
            if left:
                print(f"models left behind: {', '.join(left)}")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.carry", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("verb", choices=("split", "join", "models"))
    add("paths", nargs="+", type=Path)
    add("--into", type=Path, required=True)
    add("--results", type=Path, help="models: the result files of this size")
    add("--mib", type=float, default=42, help="split: of each part; models: of all")
    add("--part", type=float, default=15.5, help="models: MiB of each part")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
