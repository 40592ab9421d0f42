"""How fast compiled circuits are beside dense models, removed nodes and masks: python -m benchmarks.model [SECTION ...]

Prints each row with its target and whether it is met, the machine and the misses, and keeps the rows as JSON in
benchmarks/results. ``--readme FILE`` measures nothing and prints the README's tables from such a file. Sections:
``latency`` (the table), ``large`` (ViT-S/16 and ViT-B/16), ``compile`` (seconds of sparsify), ``memory``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.model.compile_time import compile_time
from benchmarks.model.latency import large, latency
from benchmarks.model.memory import memory
from benchmarks.model.results import default_file, facts_of, line, misses, readme, store
from vitsparse import InputError

SECTIONS = {"latency": latency, "large": large, "compile": compile_time, "memory": memory}


def main(arguments: list[str] | None = None) -> None:
    """Measure the sections asked for, print their rows, and keep them; see the module's head."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all without")
    parser.add_argument("--threads", type=int, default=2, help="of every candidate (default: 2)")
    parser.add_argument("--out", type=Path, help="JSON file to write, instead of one in benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing kept unless --out says where: does "
                                                             "it run, not how fast it is")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="print the README's tables from a file of results")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.sections) - set(SECTIONS)):
        parser.error(f"unknown: {', '.join(unknown)}")
    if given.threads < 1:
        parser.error("--threads: at least 1")
    try:
        if given.readme is not None:
            print(readme(given.readme), end="")
        else:
            measure_sections(given.sections or list(SECTIONS), given)
    except InputError as error:
        parser.error(str(error))


def measure_sections(names: list[str], given: argparse.Namespace) -> None:
    """Each section is kept as soon as it is measured."""
    torch.set_num_threads(given.threads)
    facts = facts_of(given.threads)
    file = given.out or (None if given.quick else default_file(facts))
    print("  ".join(f"{fact} {value}" for fact, value in facts.items()), flush=True)
    missed: list[Any] = []
    for name in names:
        rows: list[dict[str, Any]] = []
        print(f"\n{name}", flush=True)
        for row in SECTIONS[name](quick=given.quick):
            rows.append(row)
            print(f"  {line(row)}", flush=True)
        missed += misses(rows)
        if file is not None:
            store(file, name, {"machine": facts_of(given.threads), "rows": rows})
    print(f"\n{len(missed)} missed" + (":" if missed else ""))
    for row in missed:
        print(f"  {line(row)}")
    if file is not None:
        print(f"rows: {file}")


if __name__ == "__main__":
    main()
