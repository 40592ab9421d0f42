"""What is wrong with the tests of a GPU shows before there is one: most run on the CPU, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys

LONG = ("every_way", "shapes", "random", "opcheck", "batches", "fall", "two_captured", "freed", "constant")


def test_rehearsal(root):
    chosen = " and ".join(f"not {name}" for name in LONG)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "-k", chosen, "-p",
                           "no:cacheprovider"], cwd=root, env=os.environ | {"VITSPARSE_REHEARSE_ON": "cpu"},
                          capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:]
