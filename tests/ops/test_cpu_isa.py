"""The level of the CPU kernels: chosen by name, refused by name, and put back."""

from __future__ import annotations

import pytest

from tests.ops.kernels import HERE, needs_cpu_ops
from vitsparse.backends import native
from vitsparse.ops.cpu_isa import LEVELS, cpu_isa, using_cpu_isa

pytestmark = needs_cpu_ops


def test_the_best_level_is_the_default_and_comes_back():
    assert cpu_isa() == HERE[-1] == native.core().cpu_isa()
    for level in HERE:
        with using_cpu_isa(level):
            assert cpu_isa() == level
        assert cpu_isa() == HERE[-1]


def test_unknown_levels_and_levels_that_the_machine_lacks_are_refused():
    with pytest.raises(RuntimeError, match="expected scalar, avx2 or avx512, found 'avx3'"), using_cpu_isa("avx3"):
        pass
    for level in LEVELS[len(HERE):]:
        with pytest.raises(RuntimeError, match="this machine has at most"), using_cpu_isa(level):
            pass
