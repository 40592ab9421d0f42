"""The CPU kernels alone: each ``*_test.cpp`` here is compiled with sanitizers, without torch or Python, and run.

The first line of a test names the kernel sources it needs: ``// sources: kernels/cpu/noop.cpp ...``.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
COMPILER = shutil.which("c++") or shutil.which("g++")
FLAGS = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined",
         "-fno-sanitize-recover=all"]
LEVELS = {"_avx2": ["-mavx2", "-mfma"],
          "_avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"]}
"""Flags of the sources whose names end so, as in CMakeLists.txt; the other kernels are for every machine."""


@pytest.fixture(scope="module")
def sanitizers(tmp_path_factory) -> None:
    """Skips where there is no compiler, or one without its sanitizer libraries."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.cpp").write_text("int main() {}")
    probe = subprocess.run([COMPILER, *FLAGS, folder / "probe.cpp", "-o", folder / "probe"], capture_output=True)
    if probe.returncode or subprocess.run([folder / "probe"], capture_output=True).returncode:
        pytest.skip("the compiler has no working sanitizers")


@pytest.mark.usefixtures("sanitizers")
@pytest.mark.parametrize("test", sorted(HERE.glob("*_test.cpp")), ids=lambda path: path.stem)
def test_kernel(test, root, tmp_path):
    first, *_ = test.read_text().splitlines()
    assert first.startswith("// sources: ")
    sources = [test, *(root / name for name in first.removeprefix("// sources: ").split())]
    objects = [build(source, root, tmp_path) for source in sources]
    program = tmp_path / test.stem
    run(COMPILER, *FLAGS, *objects, "-o", program)
    run(program)


def build(source: Path, root: Path, folder: Path) -> Path:
    """The object of one source, compiled for the instruction set that its name says."""
    level = next((flags for end, flags in LEVELS.items() if source.stem.endswith(end)), [])
    compiled = folder / f"{source.stem}.o"
    run(COMPILER, *FLAGS, *(level if platform.machine() in ("x86_64", "AMD64") else []), f"-I{root}", "-c", source,
        "-o", compiled)
    return compiled


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
