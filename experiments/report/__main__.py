"""``python -m experiments.report``: make all that is read, or say what of it is stale."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitsparse import InputError
from vitsparse.circuit.files import existing_file, write_text

from ..sizes import SIZES
from . import flat
from .findings import Findings
from .page import filled
from .pictures import Picture, picture, stem

HOME = Path(__file__).parents[1]
EXPERIMENTS, DRAWN = ("seed_table", "pareto", "classes"), ("pareto", "classes")


@dataclass(frozen=True)
class Report:
    """What should be there: ``texts`` by file (None: no such file), and ``pictures``."""

    texts: Mapping[Path, str | None]
    pictures: Sequence[Picture]

    @classmethod
    def of(cls, folder: Path, sizes: Sequence[str]) -> Report:
        """From ``folder``/results, for the page and the files of the experiments in ``folder``."""
        findings = {size: Findings.load(folder / "results", size) for size in sizes}
        texts: dict[Path, str | None] = {}
        pictures: dict[tuple[str, str], Picture | None] = {}
        for size, found in findings.items():
            for experiment in EXPERIMENTS:
                rows, place = flat.rows(found, experiment), folder / experiment / f"results-{size}"
                texts[place.with_suffix(".csv")] = flat.as_csv(rows) if rows else None
                texts[place.with_suffix(".json")] = flat.as_json(rows) if rows else None
            for experiment in DRAWN:
                pictures[experiment, size] = picture(found, experiment, folder)
                if pictures[experiment, size] is None:
                    texts |= {Path(f"{folder / stem(experiment, size)}.{kind}"): None for kind in ("png", "svg")}
        page = existing_file(folder / "README.md")
        drawn = {key: value is not None for key, value in pictures.items()}
        texts[page] = filled(page, findings, drawn)
        front = folder.parent / "README.md"
        if front.exists():
            texts[front] = filled(front, findings, drawn, whole=False)
        return cls(texts, [value for value in pictures.values() if value])

    def stale(self) -> list[Path]:
        """Files that differ from what the results say."""
        texts = [path for path, text in self.texts.items()
                 if (path.read_bytes() if path.exists() else None) != (None if text is None else text.encode())]
        return texts + [Path(f"{drawn.stem}.svg") for drawn in self.pictures if not drawn.is_there()]

    def write(self) -> None:
        for path, text in self.texts.items():
            if text is None:
                path.unlink(missing_ok=True)
            else:
                write_text(path, text)
        for drawn in self.pictures:
            drawn.save()


def main(argv: Sequence[str]) -> int:
    """0, 1 where ``--check`` finds something stale, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report",
                                     description="Make the tables, rows and pictures from the result files.")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--folder", type=Path, default=HOME, help="of README.md and results/ (default: experiments)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something is stale")
    arguments = parser.parse_args(argv)
    try:
        report = Report.of(arguments.folder, arguments.size)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    stale = report.stale()
    print("\n".join(f"stale: {path}" for path in stale) or "all is as the results say")
    if not arguments.check:
        report.write()
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
