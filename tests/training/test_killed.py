"""Training killed by SIGKILL, at steps, inside the writing of a checkpoint and at any time, ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_and_resume.py")
ROOT = Path(__file__).parents[2]

# An undisturbed run draws 18 batches (and more for validation), writes 9 checkpoints of 8 fsyncs and 5 renames each.
BATCHES, FSYNCS, REPLACES = 18, 72, 45


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_training_resumes_to_the_same_bits(tmp_path):
    draw = random.Random(0)
    certain = [["batch", n] for n in draw.sample(range(7, BATCHES), 2)]
    certain += [["fsync", n] for n in draw.sample(range(1, FSYNCS), 6)]
    certain += [["replace", n] for n in draw.sample(range(1, REPLACES), 4)]
    by_chance = [["time", draw.uniform(0.02, 0.4)] for _ in range(3)]
    plan = [["batch", 10**6], *certain, *by_chance]
    command = [sys.executable, str(SCRIPT), str(tmp_path), json.dumps(plan)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    undisturbed, *results = map(json.loads, done.stdout.splitlines())
    assert not undisturbed["killed"]
    assert len(results) == len(plan) - 1
    assert all(result["killed"] for result in results[:len(certain)])
    assert [result["digest"] for result in results] == [undisturbed["digest"]] * len(results)
    csv_files = [(tmp_path / str(i) / "gradient_flow.csv").read_text() for i in range(len(plan))]
    assert csv_files == [csv_files[0]] * len(plan)
