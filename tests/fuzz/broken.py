"""A family that breaks every promise, to see that it is noticed."""

from __future__ import annotations

import os
import signal
import time

from tests.fuzz import worker
from tests.fuzz.pool import Bug


class Attempt:
    def __call__(self, seed: int) -> str:
        match seed:
            case 2:
                os.kill(os.getpid(), signal.SIGKILL)
            case 4:
                raise Bug("it wrote into its weights")
            case 5:
                raise KeyError("any other error")
            case 7:
                worker.watch(0.2)
                time.sleep(60)
        return "kept"
