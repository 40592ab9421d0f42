"""``python -m tests.fuzz --count 100000``: mutated programs and saved models, every seed of a range."""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz.pool import FAMILIES, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="attempts, split evenly over the families")
    parser.add_argument("--family", choices=FAMILIES, help="this one alone")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    families = [arguments.family] if arguments.family else FAMILIES
    failed = False
    for family in families:
        start = time.monotonic()
        seeds = range(arguments.first, arguments.first + arguments.count // len(families))
        report = run(family, seeds, processes=arguments.processes)
        print(f"{family}, {time.monotonic() - start:.0f} s: {report}", flush=True)
        failed |= bool(report.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
