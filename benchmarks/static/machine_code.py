"""The machine code in libvitsparse_cuda.so, kernel by kernel, as cuobjdump shows it. Needs no GPU."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INSTRUCTION_BYTES = 16  # of every architecture from 7.0 on
COUNTED = ("HMMA", "HGMMA", "LDGSTS", "LDL", "STL")
_OPCODE = re.compile(rf"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?({'|'.join(COUNTED)}|\w+)\b")


@dataclass(frozen=True)
class Kernel:
    """A kernel as compiled for ``arch`` ("75", "90a").

    registers  of a thread                      stack   bytes of a thread in memory: spills, indexed arrays
    shared     bytes of a block, static         hmma, hgmma  tensor-core instructions, of a warp and of four warps
    local      loads and stores of the stack    copies  asynchronous copies to shared memory (LDGSTS)
    """

    name: str
    arch: str
    registers: int
    stack: int
    shared: int
    code_bytes: int
    hmma: int
    hgmma: int
    local: int
    copies: int

    @property
    def op(self) -> str:
        """What the kernel is for, by its name: ``linear`` for linear_kernel and linear_warpgroups."""
        return re.sub(r"_(kernel|warpgroups)$", "", self.name.partition("<")[0])


def tool(name: str) -> str | None:
    """``cuobjdump`` from PATH, or the one that comes with Triton; None where neither is."""
    if found := shutil.which(name):
        return found
    try:
        import triton
    except ImportError:
        return None
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    return str(bundled) if bundled.is_file() else None


@functools.cache
def kernels(library: Path) -> tuple[Kernel, ...]:
    """All kernels of ``library``, for each architecture that it holds machine code of."""
    resources = dict(_resources(library))
    counts = dict(_counts(library))
    assert counts.keys() <= resources.keys()
    names = demangled(tuple(sorted({name for _, name in resources})))
    found = (Kernel(names[name], arch, *resources[arch, name], *counts[arch, name]) for arch, name in counts)
    return tuple(sorted(found, key=lambda kernel: (kernel.name, kernel.arch)))


def _resources(library: Path) -> Iterator[tuple[tuple[str, str], tuple[int, int, int]]]:
    """((architecture, mangled name), (registers, stack, static shared bytes)) of each kernel."""
    arch = name = ""
    for line in _lines("--dump-resource-usage", library):
        if found := re.match(r"arch = sm_(\w+)", line):
            arch = found[1]
        elif found := re.match(r" Function (\S+):", line):
            name = found[1]
        elif found := re.match(r"\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            yield (arch, name), tuple(map(int, found.groups()))


def _counts(library: Path) -> Iterator[tuple[tuple[str, str], tuple[int, ...]]]:
    """((architecture, mangled name), (code bytes, HMMA, HGMMA, LDL and STL, LDGSTS)) of each kernel."""
    arch, name, counts = "", "", Counter[str]()

    def result() -> tuple[tuple[str, str], tuple[int, ...]]:
        local = counts["LDL"] + counts["STL"]
        size = INSTRUCTION_BYTES * counts.total()
        return (arch, name), (size, counts["HMMA"], counts["HGMMA"], local, counts["LDGSTS"])

    for line in _lines("--dump-sass", library):
        if found := _OPCODE.match(line):
            counts[found[1]] += 1
        elif found := re.match(r"\s*Function : (\S+)|arch = sm_(\w+)", line):
            if name:
                yield result()
            name, arch, counts = found[1] or "", found[2] or arch, Counter()
    if name:
        yield result()


def _lines(option: str, library: Path) -> Iterator[str]:
    """What ``cuobjdump`` prints, line by line: tens of megabytes for machine code."""
    command = tool("cuobjdump")
    if command is None:
        raise RuntimeError("cuobjdump is needed: it comes with the CUDA toolkit and with Triton")
    with subprocess.Popen([command, option, library], stdout=subprocess.PIPE, text=True) as process:
        yield from process.stdout
    if process.returncode:
        raise RuntimeError(f"cuobjdump {option} {library} failed")


def demangled(names: tuple[str, ...]) -> dict[str, str]:
    """Each mangled name, readable: ``linear_kernel<75, half, LinearShape<128, 128>>``."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, map(_short, text.splitlines())))


def _short(name: str) -> str:
    for long, short in ((r"\(vitsparse::cuda::Level\)", ""), (r"vitsparse::(cuda::)?", ""), (r"^void ", ""),
                        (r"\(anonymous namespace\)::", ""), (r"\([^()]*\)$", ""), (r"\((int|bool)\)", ""),
                        (r"__nv_", ""), (r"__half", "half"), (r"\s+>", ">")):
        name = re.sub(long, short, name)
    return name
