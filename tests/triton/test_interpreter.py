"""``test_kernels.py`` and ``test_models.py`` in Triton's interpreter, in a process of its own: no GPU needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from vitsparse.backends import triton


def interpreter_is_broken() -> bool:
    """Triton before 3.8 fails on loops to a run-time bound with numpy from 2.4 on."""
    import triton as package

    triton_version, numpy_version = (tuple(int(part) for part in version.split(".")[:2])
                                     for version in (package.__version__, numpy.__version__))
    return triton_version < (3, 8) and numpy_version >= (2, 4)


@pytest.mark.skipif(triton.interpreted(), reason="this is the interpreter")
@pytest.mark.skipif("triton is not installed" in triton.why_not(), reason="triton is not installed")
def test_kernels_in_the_interpreter():
    if interpreter_is_broken():
        pytest.skip("this numpy needs Triton 3.8 or newer for loops in its interpreter")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header",
               *(str(Path(__file__).with_name(name)) for name in ("test_kernels.py", "test_models.py"))]
    result = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
                            cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
