"""What ``import vitsparse`` needs and costs, each time in a fresh process."""

from __future__ import annotations

import subprocess
import sys

OPTIONAL = ("torchvision", "timm", "matplotlib", "triton", "sklearn", "pyarrow", "tyro", "pydantic")


def run(program: str) -> str:
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_imports_without_the_optional_packages():
    run(f"""if True:
        import sys
        sys.modules.update(dict.fromkeys({OPTIONAL}))  # a None here makes an import fail as if nothing were installed
        import vitsparse
    """)


def test_does_not_import_what_it_does_not_need():
    """torch itself brings some packages in where they are installed, so only what vitsparse adds counts."""
    added = run("""if True:
        import sys
        import torch
        before = set(sys.modules)
        import vitsparse
        print(*(set(sys.modules) - before))
    """)
    assert set(added.split()).isdisjoint(OPTIONAL)


def test_costs_less_than_two_seconds_beyond_torch():
    """Processor time, not wall time: other work on the machine must not fail a test."""
    seconds = run("""if True:
        import time
        import torch
        start = time.process_time()
        import vitsparse
        print(time.process_time() - start)
    """)
    assert float(seconds) < 2.0


def test_works_where_nothing_is_built():
    """Without the pybind11 module the reference still runs, and the native backend says what to do."""
    out = run("""if True:
        import sys
        sys.modules["vitsparse._core"] = None
        from pathlib import Path
        from vitsparse.backends import native
        native.path = lambda library: Path("/nowhere") / f"libvitsparse_{library}.so"
        import torch
        from vitsparse.ops.noop import noop
        assert torch.equal(noop(torch.ones(3), "reference"), torch.ones(3))
        print(native.why_not("cpu")[0])
    """)
    assert out == ("libvitsparse_cpu.so is missing: the native parts are not built: "
                   "run `pip install .` in the source folder\n")
