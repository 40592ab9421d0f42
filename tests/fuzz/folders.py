"""Mutated folders of saved sparse models: refused with the file and the field, or loaded and run."""

from __future__ import annotations

import json
import math
import random
import tempfile
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from tests.compiler.cases import BACKENDS, case_of
from tests.fuzz.pool import Bug
from tests.fuzz.programs import TINY
from vitsparse.circuit import Graph
from vitsparse.compiler import SparseViT
from vitsparse.errors import InputError
from vitsparse.model.config import ViTConfig

CONFIG, WEIGHTS, CIRCUIT = "config.json", "model.safetensors", "circuit.json"
NUMBERS = (-(2**63), 2**63 - 1, 2**64, 10**400, -(2**31), 2**31, 2**40, 10**12, 10**6, 70000, 5000, 100, 16, 9, 8, 6, 5,
           4, 3, 2, 1, 0, -1, -2, 0.5, 1e308, -0.0, 1e-320)
VALUES = (None, True, False, "", "a0.h0", "input", "logits", "head.weight", "x" * 5000, [], {}, [[0, 4]], [0, 9],
          [3, 2], [[]], {"kind": "View"}, [None] * 20, "\u0000", "\ud800", "NaN")
DEEP = ("deep 3", "deep 600", "deep 100000")
TYPES = ("F32", "F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "C64", "X")
Folder = dict[str, bytes]


def originals() -> list[Folder]:
    """Folders of small models: constants, patterns, MLP groups, both pools, granularities."""
    average = ViTConfig(**{**TINY.to_dict(), "global_pool": "avg", "init_values": None, "depth": 1})
    found = []
    for kind, ablation, config, granularity in (
            ("sparse", "mean", TINY, "qkv"), ("dead parts", "zero", average, "head"),
            ("constant", "mean", TINY, "layer"), ("full", "mean", average, "block")):
        case = case_of(kind, ablation, config=config, graph=Graph(config.depth, 3, granularity, 2))
        with tempfile.TemporaryDirectory() as folder:
            case.sparse("auto").save_pretrained(folder)
            found.append({name: (Path(folder) / name).read_bytes() for name in (CONFIG, WEIGHTS, CIRCUIT)})
    return found


class Attempt:
    """``attempt(seed)``: one mutated folder, the same for the same seed; the outcome's name, or :class:`Bug`."""

    def __init__(self) -> None:
        self.originals = originals()
        self._kept = tempfile.TemporaryDirectory()
        self.folder = Path(self._kept.name)

    def __call__(self, seed: int) -> str:
        rng = random.Random(seed)
        files = dict(rng.choice(self.originals))
        for _ in range(rng.choice((1, 1, 2))):
            name, change = rng.choice(MUTATIONS)
            files[name] = change(rng, files[name])
        if rng.random() < 0.8:
            sign(files)
        for name, data in files.items():
            (self.folder / name).write_bytes(data)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("error")
                return self._judge(rng.choice((None, *BACKENDS)))
        except InputError as error:
            if not error.where or not (str(self.folder) in str(error) or error.where == "backend"):
                raise Bug(f"a refusal that names no place: {error}") from error
            return "refused"
        except Exception as error:
            raise Bug(f"{type(error).__name__} instead of InputError: {error}") from error

    def _judge(self, backend: str | None) -> str:
        sparse = SparseViT.from_pretrained(self.folder, backend=backend)
        config = sparse.config
        images = torch.randn(2, config.in_chans, config.img_size, config.img_size)
        out = sparse(images)
        if out.shape != (2, config.num_classes):
            raise Bug(f"logits of shape {list(out.shape)}")
        sparse.forward_features(images)
        return "loaded and run"


def sign(files: Folder) -> None:
    """Make the configuration name the files as they are, so that the checks behind the digests are reached."""
    try:
        config = json.loads(files[CONFIG])
        config["sha256"].update({name: sha256(files[name]).hexdigest() for name in (WEIGHTS, CIRCUIT)})
        files[CONFIG] = json.dumps(config).encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return  # it is too damaged to name anything


def scramble(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, lost, doubled, or cut off."""
    changed, at = bytearray(data), rng.randrange(len(data) + 1)
    match rng.randrange(5):
        case 0:
            changed[at: at + 1] = rng.randbytes(1)
        case 1:
            del changed[at:]
        case 2:
            del changed[at: at + rng.randrange(1, 40)]
        case 3:
            changed[at:at] = rng.randbytes(rng.randrange(1, 40))
        case 4:
            source = rng.randrange(len(data) + 1)
            changed[at:at] = data[source: source + rng.randrange(1, 200)]
    return bytes(changed)


def paths(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place in a JSON value but its root."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, entry in items for place in ((*path, key), *paths(entry, (*path, key)))]


def strange(rng: random.Random, old: Any) -> Any:
    """Another value: a near number, a monstrous one, or none at all."""
    if type(old) is int and rng.random() < 0.4:
        return old + rng.choice((-2, -1, 1, 2, 8))
    return rng.choice(NUMBERS if rng.random() < 0.6 else VALUES)


def graft(rng: random.Random, root: Any) -> None:
    """One entry of a JSON value is replaced, lost, doubled, renamed, or exchanged with another one."""
    places = paths(root)
    if not places:
        return
    *path, last = rng.choice(places)
    target = inside(root, path)
    match rng.randrange(8):
        case 0:
            del target[last]
        case 1 if isinstance(target, list):
            target.insert(last, target[last])
        case 1 if isinstance(target, dict):
            target[rng.choice(("x", "kind", "rows", ""))] = target.pop(last)
        case 2:
            *other, name = rng.choice(places)
            source = inside(root, other)
            target[last], source[name] = json.loads(json.dumps([source[name], target[last]]))
        case 3:
            target[last] = rng.choice(DEEP)
        case _:
            target[last] = strange(rng, target[last])


def inside(root: Any, path: list) -> Any:
    for key in path:
        root = root[key]
    return root


def in_json(rng: random.Random, data: bytes) -> bytes:
    """One to three changes inside a JSON file."""
    try:
        root = json.loads(data)
        for _ in range(rng.randrange(1, 4)):
            graft(rng, root)
        return text_of(root)
    except (ValueError, RecursionError):
        return data


def text_of(value: Any) -> bytes:
    """JSON, with lists in lists where a word of :data:`DEEP` stands."""
    text = json.dumps(value)
    for word in DEEP:
        depth = int(word.removeprefix("deep "))
        text = text.replace(json.dumps(word), "[" * depth + "]" * depth)
    return text.encode()


def in_header(rng: random.Random, data: bytes) -> bytes:
    """The header of a safetensors file: its length, a type, a shape, an offset, a name."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8: 8 + size])
        name = rng.choice([key for key in header if key != "__metadata__"])
        entry = header[name]
        match rng.randrange(7):
            case 0:
                length = rng.choice((0, 1, size - 1, size + 1, size + 8, 2**27, 2**31, 2**40, 2**63 - 1, 2**64 - 1))
                return length.to_bytes(8, "little") + data[8:]
            case 1:
                entry["dtype"] = rng.choice(TYPES)
            case 2:
                entry["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randrange(4))]
            case 3:
                entry["shape"] = [math.prod(entry["shape"])] if rng.random() < 0.5 else [*entry["shape"], 1]
            case 4:
                entry["data_offsets"][rng.randrange(2)] = rng.choice((*NUMBERS, *range(0, 4096, 128)))
            case 5:
                header[rng.choice(("head.weight", "constants:x", "x", "constants:"))] = header.pop(name)
            case 6:
                graft(rng, header)
        text = text_of(header)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return data  # it was damaged before
    return len(text).to_bytes(8, "little") + text + data[8 + size:]


def in_numbers(rng: random.Random, data: bytes) -> bytes:
    """Other numbers behind the header: any bytes, NaN, infinity, huge ones."""
    changed, start = bytearray(data), 8 + int.from_bytes(data[:8], "little")
    if start >= len(data):
        return data
    for _ in range(rng.choice((1, 50))):
        at = start + (rng.randrange(len(data) - start) & ~3)
        changed[at: at + 4] = rng.choice((rng.randbytes(4), b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f"))
    return bytes(changed)


MUTATIONS: tuple[tuple[str, Callable[[random.Random, bytes], bytes]], ...] = (
    (CONFIG, in_json), (CONFIG, in_json), (CONFIG, in_json), (CONFIG, scramble), (CIRCUIT, in_json),
    (CIRCUIT, scramble), (WEIGHTS, scramble), (WEIGHTS, in_header), (WEIGHTS, in_header), (WEIGHTS, in_numbers))
