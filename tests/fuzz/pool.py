"""Attempts in processes of their own, so that a crash, a hang or an eaten memory is seen, with the seed that did it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FAMILIES = ("programs", "folders")


class Bug(AssertionError):
    """An attempt did what it must not: another kind of error, one that names no place, harm done to what is read."""


@dataclass
class Report:
    """Outcomes by name, and each failure as (seed, what happened)."""

    outcomes: Counter = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{sum(self.outcomes.values())} attempts: "
                 + ", ".join(f"{count} {name}" for name, count in self.outcomes.most_common())]
        lines += [f"seed {seed}: {text}" for seed, text in self.failures]
        return "\n".join([*lines, f"{len(self.failures)} failures"])


def run(family: str, seeds: range, *, processes: int = 1) -> Report:
    """Every attempt of ``family`` with ``seeds``, split over ``processes``; goes on behind each failure."""
    report, lock = Report(), threading.Lock()
    shares = [seeds[i::processes] for i in range(processes)]
    threads = [threading.Thread(target=_supervise, args=(family, share, report, lock)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report.failures.sort()
    return report


def _supervise(family: str, seeds: range, report: Report, lock: threading.Lock) -> None:
    while seeds:
        command = [sys.executable, "-m", "tests.fuzz.worker", family, *map(str, (seeds.start, seeds.stop, seeds.step))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])}
        done = 0
        with (tempfile.TemporaryFile("w+") as errors,
              subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process):
            for line in process.stdout:
                outcome, bug = json.loads(line)
                with lock:
                    report.outcomes[outcome] += 1
                    report.failures += [(seeds[done], bug)] if bug else []
                done += 1
            code = process.wait()
            errors.seek(0)
            complaint = errors.read()
        if code == 0 and done == len(seeds):
            return
        with lock:
            report.outcomes["failed"] += 1
            report.failures.append((seeds[done] if done < len(seeds) else seeds.stop,
                                    f"exit status {code}\n{complaint[:3000]}"))
        seeds = seeds[done + 1:]
