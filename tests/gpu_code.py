"""Looking at GPU code without a GPU: machine code of the CUDA library, and Triton's ahead-of-time compiler."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest

from vitsparse.backends import native

CAPABILITIES = (75, 86, 90)


@functools.cache
def sass_of(library: str, capability: int) -> dict[str, str]:
    """Machine code of each kernel of ``libvitsparse_<library>.so`` for one capability; skips where it cannot be had."""
    triton = pytest.importorskip("triton", reason="cuobjdump comes with triton")
    if not native.build_facts().get("cuda_ops"):
        pytest.skip(f"the CUDA ops are not built: {native.build_facts().get('why_no_cuda_ops', 'nothing is built')}")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "--dump-sass", "--gpu-architecture", f"sm_{capability}", native.path(library)],
                          capture_output=True, text=True, check=True).stdout
    _, *parts = re.split(r"^\s*Function : (\S+)$", text, flags=re.M)
    return dict(zip(parts[::2], parts[1::2]))


def triton_cubin(kernel, signature: dict[str, str], constants: dict[str, int], capability: int) -> bytes:
    """``kernel`` compiled by Triton for ``capability``, as a cubin. ``signature``: types of its run-time arguments."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
