"""The CPU kernels alone: each ``*_test.cpp`` here is compiled with sanitizers, without torch or Python, and run.

The first line of a test names the kernel sources it needs: ``// sources: kernels/cpu/noop.cpp ...``.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
COMPILER = shutil.which("c++") or shutil.which("g++")
FLAGS = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined",
         "-fno-sanitize-recover=all"]


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
    sources = [root / name for name in first.removeprefix("// sources: ").split()]
    program = tmp_path / test.stem
    compiled = subprocess.run([COMPILER, *FLAGS, f"-I{root}", test, *sources, "-o", program],
                              capture_output=True, text=True, timeout=240)
    assert compiled.returncode == 0, compiled.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
