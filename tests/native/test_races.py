"""The executor alone under ThreadSanitizer, with stand-in kernels and threads of its own instead of torch's pool."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TEST = Path(__file__).resolve().parent / "program_test.cpp"
COMPILER = shutil.which("c++") or shutil.which("g++")
FLAGS = ["-std=c++17", "-O1", "-g", "-fsanitize=thread"]
RACE = """#include <thread>
int shared = 0;
int main() { std::thread other([] { ++shared; }); ++shared; other.join(); }
"""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    alone = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # of make sanitize
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=alone)


@pytest.fixture(scope="module")
def thread_sanitizer(tmp_path_factory) -> None:
    """Skips where there is no compiler whose ThreadSanitizer finds the plainest race."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("race")
    (folder / "race.cpp").write_text(RACE)
    built = run(COMPILER, *FLAGS, folder / "race.cpp", "-o", folder / "race")
    if built.returncode or "data race" not in run(folder / "race").stderr:
        pytest.skip("the compiler has no working ThreadSanitizer")


@pytest.mark.usefixtures("thread_sanitizer")
def test_the_executor_has_no_races(root, tmp_path):
    names = TEST.read_text().splitlines()[0].removeprefix("// sources: ").split()
    built = run(COMPILER, *FLAGS, f"-I{root}", TEST, *(root / name for name in names), "-o", tmp_path / "test")
    assert built.returncode == 0, built.stderr
    done = run(tmp_path / "test")
    assert done.returncode == 0, done.stdout + done.stderr
