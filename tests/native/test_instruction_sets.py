"""Code compiled for AVX2 or AVX-512 must not leak into what every machine runs."""

from __future__ import annotations

import shutil
import subprocess

import pytest


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_no_symbol_of_a_level_can_replace_another(root, level):
    """The linker keeps one copy of a weak symbol (an inline function, a template), and it might be the AVX-512 one."""
    objects = list((root / "build").glob(f"native-*/CMakeFiles/vitsparse_kernels.dir/kernels/cpu/*_{level}.cpp.o"))
    if not objects:
        pytest.skip("the native parts were not built here")
    lines = subprocess.run(["nm", "-C", *objects], capture_output=True, text=True, check=True).stdout.splitlines()
    assert any(f"vitsparse::cpu::{level}::" in line and " T " in line for line in lines)
    assert not [line for line in lines if any(f" {kind} " in line for kind in "WVu")]
