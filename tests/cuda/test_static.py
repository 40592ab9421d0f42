"""The machine code of the CUDA library: tensor cores are used, nothing spills, shared memory suffices everywhere."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.static import launches
from benchmarks.static.devices import SHARED_LIMITS
from benchmarks.static.machine_code import Kernel
from tests.gpu_code import kernels_of_library

MULTIPLYING = {"linear", "attention", "qkv_attention", "mlp", "apply_pattern"}
IN_PROGRAMS = {"norm_linear"}  # what multiplies as well, and is no op of its own
BLOCK_REGISTERS = 65536  # of a multiprocessor, of every architecture here


@pytest.fixture(scope="module")
def kernels() -> tuple[Kernel, ...]:
    return kernels_of_library("cuda")


def level_of(kernel: Kernel) -> int | None:
    """The level that a kernel was instantiated for, or None where it has none."""
    found = re.search(r"<(75|80|90)\b", kernel.name)
    return 90 if kernel.arch == "90a" else int(found[1]) if found else None


def in_half_precision(kernel: Kernel) -> bool:
    return re.search(r"\b(half|bfloat16)\b", kernel.name) is not None


def complaints(kernels, wrong) -> list[str]:
    return [f"{kernel.name} for {kernel.arch}: {kernel}" for kernel in kernels if wrong(kernel)]


def test_every_op_is_there_for_every_architecture(kernels):
    ops = {kernel.op for kernel in kernels}
    assert ops >= MULTIPLYING | IN_PROGRAMS | {"sum_norm", "noop"}
    for op in ops:
        assert {kernel.arch for kernel in kernels if kernel.op == op} >= {"75", "86", "90"}, op


def test_levels_are_compiled_for_the_architectures_that_have_them(kernels):
    """A level 80 kernel for 7.5 would not even assemble; one missing for 9.0 would be a device without code."""
    archs = {75: {"75", "86", "90"}, 80: {"86", "90"}, 90: {"90a"}, None: {"75", "86", "90"}}
    found: dict[str, set[str]] = {}
    for kernel in kernels:
        found.setdefault(kernel.name, set()).add(kernel.arch)
    levels = {kernel.name: level_of(kernel) for kernel in kernels}
    assert not {name: there for name, there in found.items() if there != archs[levels[name]]}
    assert {75, 80} <= set(levels.values())


def test_no_kernel_keeps_registers_in_memory(kernels):
    assert not complaints(kernels, lambda kernel: kernel.local or kernel.stack)


def test_products_run_on_tensor_cores(kernels):
    products = [kernel for kernel in kernels if kernel.op in MULTIPLYING | IN_PROGRAMS and in_half_precision(kernel)]
    assert {kernel.op for kernel in products} == MULTIPLYING | IN_PROGRAMS
    assert not complaints(products, lambda kernel: kernel.hgmma == 0 if level_of(kernel) == 90 else kernel.hmma == 0)


def test_copies_are_asynchronous_where_the_level_has_them(kernels):
    products = [kernel for kernel in kernels if kernel.op in MULTIPLYING | IN_PROGRAMS and level_of(kernel) in (75, 80)]
    assert not complaints(products, lambda kernel: (kernel.copies > 0) != (level_of(kernel) == 80))


def test_every_launch_fits_in_the_device(emulated, kernels):
    """The launches of every op in the shapes of the latency tables, as the dispatch chooses them for each device."""
    library = launches.library()
    calls = list(launches.calls(emulated, library))
    assert {call.op for call in calls} == MULTIPLYING | {"sum_norm"}
    static = {(kernel.name, kernel.arch): kernel for kernel in kernels}
    for call in calls:
        assert call.launches, call
        for launch in call.launches:
            archs = (call.device.arch, f"{call.device.arch}a")
            kernel = next((static[launch.kernel, arch] for arch in archs if (launch.kernel, arch) in static), None)
            assert kernel, f"{launch.kernel} is not in the library for {call.device.name}"
            assert launch.shared + own_shared(kernel) <= SHARED_LIMITS[kernel.arch], call
            assert launch.threads * kernel.registers <= BLOCK_REGISTERS, call


def own_shared(kernel: Kernel) -> int:
    """Static shared memory; the 1 KB that 9.0 reserves for itself is not part of the limit of a block."""
    return kernel.shared - 1024 if kernel.arch.startswith("90") and kernel.shared else kernel.shared


def test_recording_ends(emulated):
    emulated.record(True)
    emulated.noop(torch.ones(3))
    assert len(list(launches.launches_of(emulated.record(False), launches.library()))) == 1
    assert torch.equal(emulated.noop(torch.ones(3)), torch.ones(3))
    assert emulated.record(False) == ""
