"""What the GPU kernels are made of, and the time that hardware leaves for them: python -m benchmarks.static

Needs no GPU: machine code is read, Triton kernels are compiled, the dispatch of the CUDA ops runs on the emulated
device without its kernels, and times are predicted (devices.py). Prints tables, and keeps everything as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.static import launches, machine_code, plans, tables, triton_code
from vitsparse.backends import native
from vitsparse.circuit.files import write_text
from vitsparse.evaluation.latency import git_commit

FILE = Path(__file__).parent.parent / "results" / "static-cuda.json"
FORMAT, VERSION = "vitsparse.benchmarks.static", 1
SECTIONS = ("kernels", "triton", "launches", "plans")


def main(arguments: list[str] | None = None) -> None:
    """Collect the sections asked for, print them, and write them; see the module's head."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.static", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FILE, help=f"JSON file to write (default: results/{FILE.name})")
    given = parser.parse_args(arguments)
    found = collect()
    write_text(given.out, as_json(found))
    print(tables.page(found))


def collect() -> dict[str, Any]:
    """Every section: ``made_by`` and lists of rows."""
    built = native.build_facts()
    made_by = {"commit": git_commit(), "sources": built["gpu_sources"][:16], "nvcc": built["cuda_compiler"],
               "triton": importlib.metadata.version("triton"), "torch": torch.__version__}
    return {
        "made_by": made_by,
        "kernels": [dataclasses.asdict(kernel) for kernel in machine_code.kernels(native.path("cuda"))],
        "triton": list(triton_code.rows()),
        "launches": [call.row() for call in launches.calls(*emulated())],
        "plans": list(plans.rows()),
    }


def emulated() -> tuple[Any, Path]:
    """The ops of the emulated device, built where necessary, and their library."""
    from tests.cuda.conftest import load_emulated

    return load_emulated(), launches.library()


def as_json(found: Mapping[str, Any]) -> str:
    """A row a line, so that changes can be read."""
    texts = [f'"made_by": {json.dumps(found["made_by"])}']
    for name in SECTIONS:
        rows = ",\n".join(f"  {json.dumps(row, allow_nan=False)}" for row in found[name])
        texts.append(f'"{name}": [\n{rows}\n ]')
    body = ",\n ".join(texts)
    return f'{{"format": "{FORMAT}", "version": {VERSION},\n {body}\n}}\n'


if __name__ == "__main__":
    main()
