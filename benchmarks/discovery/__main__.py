"""How fast discovery is, against the plain way of doing the same: python -m benchmarks.discovery [--quick] [NAME ...]

Each row is one comparison within one run: seconds of ours and of the baseline, their ratio, whether the results are the
same, and the machine. ``--out`` writes them as CSV. ``--model`` takes a trained model (a folder of ``save_pretrained``)
where a benchmark works on one, and ``--images`` the folder of Tiny ImageNet that it was trained on.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

from vitsparse.circuit.files import atomic_path
from vitsparse.evaluation.latency import machine_facts

MODULES = ("acdc", "eap", "budgeted", "planted")
FACTS = ("cpu", "cores", "threads", "gpu", "torch", "vitsparse", "commit", "date")


def main() -> None:
    """Run the benchmarks asked for, print their rows, and write them."""
    here = [name for name in MODULES if importlib.util.find_spec(f"{__package__}.{name}")]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.discovery", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(here)}; all without")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run, not how fast it is")
    parser.add_argument("--model", type=Path, help="folder of a trained model")
    parser.add_argument("--images", type=Path, help="where the images of its data set are")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(here))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    facts = {fact: value for fact, value in machine_facts().items() if fact in FACTS}
    print("  ".join(f"{fact} {value}" for fact, value in facts.items()))
    rows: list[dict[str, Any]] = []
    for name in given.names or here:
        module = importlib.import_module(f"{__package__}.{name}")
        for row in module.rows(**options(module.rows, quick=given.quick, model=given.model, images=given.images)):
            rows.append(row)
            print("  ".join(f"{field} {value}" for field, value in row.items()), flush=True)
    if given.out is not None:
        write(given.out, [{**row, **facts} for row in rows])


def options(function: Any, **values: Any) -> dict[str, Any]:
    """Those of ``values`` that a benchmark takes."""
    return {name: value for name, value in values.items() if name in inspect.signature(function).parameters}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as CSV, with the columns of all of them."""
    columns = list(dict.fromkeys(field for row in rows for field in row))
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
