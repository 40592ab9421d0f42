"""The process that makes attempts: one line of JSON for each, [outcome, what is wrong with it]."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import resource
import sys
import traceback
from pathlib import Path

from tests.fuzz.pool import Bug

SECONDS = 900.0  # one attempt takes milliseconds, but the machine may be busy
MEMORY = 2**32  # bytes that a process may ask for beyond what it begins with: far more than any attempt needs


def watch(seconds: float) -> None:
    """End this process with a traceback if nobody calls again within so many seconds."""
    faulthandler.dump_traceback_later(seconds, exit=True)


def main(family: str, seeds: range) -> None:
    attempt = importlib.import_module(f"tests.fuzz.{family}").Attempt()
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # its shadow memory is larger than any limit
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    for seed in seeds:
        watch(SECONDS)
        try:
            answer = attempt(seed), ""
        except Bug:
            answer = "failed", traceback.format_exc(limit=-4)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], range(*map(int, sys.argv[2:])))
