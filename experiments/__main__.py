"""``python -m experiments``: run the journal, or rehearse it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from vitsparse import InputError

from .cells import cells_of
from .journal import RESULTS, Journal
from .lab import Lab
from .sizes import SIZES


def main(argv: Sequence[str], experiment: str | None = None) -> int:
    """Run the open cells of ``experiment`` (None: all); the exit status, 1 where cells could not be run."""
    arguments = _parser(experiment).parse_args(argv)
    try:
        return 1 if _run(arguments, experiment) else 0
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace, experiment: str | None) -> list[str]:
    """The cells that could not be run."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if arguments.device == "auto" else arguments.device
    size = SIZES[arguments.size]
    module = f"experiments.{experiment}" if experiment else "experiments"
    command = f"python -m {module} --size {size.name} --data PATH"  # what else was given decides no result
    cells = cells_of(experiment)
    if arguments.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            lab = Lab(size.shrunk(), arguments.data, Path(folder), device)
            return Journal(cells, lab, Path(folder) / "results", command).run()
    out = arguments.out or Path("runs/experiments") / size.name
    journal = Journal(cells, Lab(size, arguments.data, out, device), arguments.results / size.name, command)
    if arguments.status:
        print("\n".join(journal.status()))
        return []
    if arguments.data is None:
        raise InputError("the images are needed", where="--data", expected="Tiny ImageNet: zip, folder, or parquet "
                         "shards", remedy="give --data PATH; --dry-run does without")
    journal.forget(arguments.again)
    if arguments.time_again:  # without its model nothing can be timed anew
        there = [cell.name for cell in cells if (out / cell.name / "model.safetensors").exists()]
        journal.forget(there, kinds=[".latency"])
    return journal.run(arguments.minutes * 60)


def _parser(experiment: str | None) -> argparse.ArgumentParser:
    about = experiment or "all experiments"
    parser = argparse.ArgumentParser(prog=f"python -m experiments{f'.{experiment}' if experiment else ''}",
                                     description=f"Run {about}: open cells in order, until time ends.")
    add = parser.add_argument
    add("--size", choices=SIZES, default="small", help="small: 20 classes, for two cores; full: 200, for a GPU")
    add("--data", type=Path, help="Tiny ImageNet: the zip, the unpacked folder, or a folder of parquet shards")
    add("--out", type=Path, help="folder of models and checkpoints (default: runs/experiments/SIZE)")
    add("--results", type=Path, default=RESULTS, help="folder of result files (default: the committed ones)")
    add("--device", default="auto")
    add("--minutes", type=float, default=float("inf"), help="begin no cell after so many minutes")
    add("--again", nargs="+", default=[], metavar="CELL", help="forget the results of these cells first")
    add("--time-again", action="store_true",
        help="forget the latencies of all models that are here: measure them on a quiet machine; go on without this")
    add("--status", action="store_true", help="say which cells are done, and run nothing")
    add("--dry-run", action="store_true",
        help="rehearse: every cell for real, on a handful of images, two updates each; nothing is kept")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
