"""Section ``memory``: what a loaded sparse model holds when only inference is wanted, each in a process of its own.

Allowed is 1.1 times the live weights, the offsets and the buffers that the plan prints. Two measurements: bytes of all
tensors that loading left plus the arena, and what the process has grown by, after one forward.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.model.candidates import some_mean
from benchmarks.model.circuits import named_circuits
from benchmarks.model.targets import MODEL
from vitsparse import Ablation, SparseViT, create_model, sparsify

CIRCUITS = ("full", "half", "found", "edges50")
ALLOWED = 1.1


def memory(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """The circuits of the table that differ here, zero and mean ablation."""
    name = "vit_digits_p2_d64_l6_h4" if quick else MODEL
    model = create_model(name).eval()
    circuits = named_circuits(model.depth, model.num_heads)
    for circuit_name in (circuit for circuit in CIRCUITS if circuit in circuits):
        circuit = circuits[circuit_name]
        for ablation in (Ablation.zero(model, circuit.graph), some_mean(model, circuit)):
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sparse = sparsify(model, circuit, ablation=ablation, backend="cpu").eval()
                sparse.save_pretrained(folder)
                held = in_fresh_process(Path(folder))
            parts = needed(sparse)
            ratio = held["tensors"] / sum(parts.values())
            yield {"kind": "memory", "name": f"{circuit_name}, {ablation.kind}", "model": name, **parts,
                   "held_bytes": held["tensors"], "grown_bytes": held["grown"], "ratio": round(ratio, 3),
                   "grown_ratio": round(held["grown"] / sum(parts.values()), 3), "target": ALLOWED,
                   "met": ratio <= ALLOWED}


def needed(sparse: SparseViT) -> dict[str, int]:
    """Bytes of the live weights, of the offsets, and of the buffers that the plan prints."""
    return {"weights_bytes": sum(value.nbytes for value in sparse.parameters()),
            "offsets_bytes": sum(value.nbytes for value in sparse.plan.constants.values()),
            "buffers_bytes": 4 * sparse.plan.memory[1]}


def in_fresh_process(folder: Path) -> dict[str, int]:
    """What :func:`report` prints in a process of its own."""
    done = subprocess.run([sys.executable, "-m", __name__, str(folder)], cwd=Path(__file__).parents[2], check=True,
                          stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(folder: str) -> None:
    """Load the model of a folder for inference, run it, and print as JSON what it holds."""
    with tempfile.TemporaryDirectory() as other:  # what is loaded and started once must not count
        warm_up(Path(other))
    before, tensors_before = resident(), storages()
    sparse = SparseViT.from_pretrained(folder, backend="cpu").drop_parameters()
    config = sparse.config
    image = torch.zeros(1, config.in_chans, config.img_size, config.img_size)
    with torch.inference_mode():
        sparse(image)
    arena = 4 * sparse.plan.memory[1]
    held = sum(size for key, size in storages().items() if key not in tensors_before) - image.nbytes
    print(json.dumps({"tensors": held + arena, "grown": resident() - before}))


def warm_up(folder: Path) -> None:
    """Save, load and run a tiny model."""
    model = create_model("vit_digits_p2_d64_l6_h4", depth=1).eval()
    circuit = named_circuits(1, 4)["half"]
    sparsify(model, circuit, ablation=Ablation.zero(model)).eval().save_pretrained(folder)
    SparseViT.from_pretrained(folder, backend="cpu").drop_parameters()(torch.zeros(1, 1, 8, 8))


def storages() -> dict[int, int]:
    """Address and bytes of the memory behind every tensor that is alive."""
    gc.collect()
    found = {}
    for value in gc.get_objects():
        with contextlib.suppress(ReferenceError, RuntimeError, NotImplementedError):
            if issubclass(type(value), Tensor) and value.device.type == "cpu":  # isinstance would ask proxies
                storage = value.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return found


def resident() -> int:
    """Bytes of this process in main memory, what the allocator keeps for later given back first."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    report(sys.argv[1])
