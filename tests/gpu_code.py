"""Looking at GPU code without a GPU: machine code of the CUDA library, and Triton's ahead-of-time compiler."""

from __future__ import annotations

import pytest

from benchmarks.static import machine_code
from benchmarks.static.machine_code import Kernel
from vitsparse.backends import native


def kernels_of_library(library: str) -> tuple[Kernel, ...]:
    """The kernels in ``libvitsparse_<library>.so``, as compiled for each capability; skips where they cannot be had."""
    if machine_code.tool("cuobjdump") is None:
        pytest.skip("there is no cuobjdump: it comes with the CUDA toolkit and with triton")
    if not native.build_facts().get(f"{library}_ops"):
        reason = native.build_facts().get(f"why_no_{library}_ops", "nothing is built")
        pytest.skip(f"the {library} ops are not built: {reason}")
    return machine_code.kernels(native.path(library))


def triton_cubin(kernel, signature: dict[str, str], constants: dict[str, int], capability: int) -> bytes:
    """``kernel`` compiled by Triton for ``capability``, as a cubin. ``signature``: types of its run-time arguments."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
