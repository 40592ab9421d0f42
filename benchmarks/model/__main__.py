"""How fast compiled circuits are beside dense models, removed nodes and masks: python -m benchmarks.model [SECTION ...]

Prints each row with its target and whether it is met, the machine and the misses, and keeps the rows as JSON in
benchmarks/results. ``--readme`` measures nothing and prints the README's tables: of one file, or of all GPUs. Sections:
``latency`` (the table), ``large`` (ViT-S/16 and ViT-B/16), ``compile`` (seconds of sparsify), ``memory``; with
``--device cuda`` the first two, and the table alone unless others are named.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.model import on_cuda
from benchmarks.model.compile_time import compile_time
from benchmarks.model.gpu_table import gpu_readme
from benchmarks.model.latency import large, latency
from benchmarks.model.memory import memory
from benchmarks.model.results import FOLDER, default_file, facts_of, facts_of_gpu, line, misses, readme, store
from vitsparse import InputError

SECTIONS = {"latency": latency, "large": large, "compile": compile_time, "memory": memory}
CUDA_SECTIONS = {"latency": on_cuda.latency, "large": on_cuda.large}
Section = Callable[..., Iterator[dict[str, Any]]]


def main(arguments: list[str] | None = None) -> None:
    """Measure the sections asked for, print their rows, and keep them; see the module's head."""
    parser = argument_parser()
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.sections) - set(SECTIONS if given.device == "cpu" else CUDA_SECTIONS)):
        parser.error(f"unknown for {given.device}: {', '.join(unknown)}")
    if min(given.threads, *given.batches) < 1:
        parser.error("--threads and --batches: at least 1")
    try:
        if given.readme is not None:
            print(gpu_readme(given.readme) if given.readme.is_dir() else readme(given.readme), end="")
        elif given.device == "cuda":
            measure_on_cuda(given)
        else:
            torch.set_num_threads(given.threads)
            chosen = {name: SECTIONS[name] for name in given.sections or SECTIONS}
            measure_sections(chosen, functools.partial(facts_of, given.threads), given)
    except InputError as error:
        parser.error(str(error))


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all without")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what to measure (default: cpu)")
    parser.add_argument("--threads", type=int, default=2, help="of every candidate on a CPU (default: 2)")
    parser.add_argument("--out", type=Path, help="JSON file to write, instead of one in benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing kept unless --out says where: does "
                                                             "it run, not how fast it is")
    parser.add_argument("--readme", type=Path, nargs="?", const=FOLDER, metavar="FILE",
                        help="print the README's tables from a file of results; without one, that of the GPUs")
    gpu = parser.add_argument_group("with --device cuda")
    gpu.add_argument("--dtype", choices=tuple(on_cuda.DTYPES), default="float16")
    gpu.add_argument("--batches", type=lambda text: tuple(map(int, text.split(","))), default=on_cuda.BATCHES,
                     help="images at a time (default: 1,128)")
    gpu.add_argument("--backends", type=lambda text: tuple(text.split(",")), default=on_cuda.BACKENDS,
                     help="of ours (default: cuda,triton)")
    gpu.add_argument("--seconds", type=float, default=on_cuda.Settings.seconds,
                     help="for making candidates; those without a target are left out after that (default: 240)")
    return parser


def measure_on_cuda(given: argparse.Namespace) -> None:
    settings = on_cuda.Settings(given.dtype, given.batches, given.seconds, given.backends)
    settings.check()
    chosen = {name: functools.partial(CUDA_SECTIONS[name], settings) for name in given.sections or ("latency",)}
    measure_sections(chosen, functools.partial(facts_of_gpu, given.dtype), given)


def measure_sections(sections: dict[str, Section], facts: Callable[[], dict[str, Any]],
                     given: argparse.Namespace) -> None:
    """Each row is kept as soon as it is measured, with the facts as they are when a kind of rows begins."""
    before = facts()
    file = given.out or (None if given.quick else default_file(before))
    print("  ".join(f"{fact} {value}" for fact, value in before.items()), flush=True)
    missed: list[Any] = []
    for name, section in sections.items():
        rows: list[dict[str, Any]] = []
        print(f"\n{name}", flush=True)
        for row in section(quick=given.quick):
            if not rows or row["kind"] != rows[-1]["kind"]:
                now = facts()
            rows.append(row)
            print(f"  {line(row)}", flush=True)
            if file is not None:
                store(file, name, {"machine": now, "rows": rows})
        missed += misses(rows)
    print(f"\n{len(missed)} missed" + (":" if missed else ""))
    for row in missed:
        print(f"  {line(row)}")
    if file is not None:
        print(f"rows: {file}")


if __name__ == "__main__":
    main()
