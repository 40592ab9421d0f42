"""Whether the GPU and driver of this machine can run what was built, and if not, why and what to do about it."""

from __future__ import annotations

import ctypes
import functools
import re
from typing import Any

import torch

Version = tuple[int, int]

MIN_CAPABILITY = (7, 5)
TEGRA = {(8, 7)}  # runs no machine code made for others, nor others its own (CUDA guide, binary compatibility)


@functools.cache
def driver() -> Version | None:
    """The newest CUDA that the installed driver supports, such as (13, 0); None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    failed = library.cuDriverGetVersion(ctypes.byref(version))
    return None if failed else (version.value // 1000, version.value % 1000 // 10)


def code_for(capability: Version, architectures: str) -> str | None:
    """What a build for ``architectures`` (CMake's list, "75-real;86-real;90") holds for a device: "machine code", "PTX"
    (which the driver compiles at the first launch), or None.
    """
    found = None
    for entry in filter(None, architectures.split(";")):
        number, specific, kind = re.fullmatch(r"(\d+)(a?)(-real|-virtual)?", entry).groups()
        built = (int(number[:-1]), int(number[-1]))
        newer = built == capability if specific else built <= capability
        same_family = built[0] == capability[0] and (built == capability or not {built, capability} & TEGRA)
        if newer and same_family and kind != "-virtual":
            return "machine code"
        if newer and kind != "-real":
            found = "PTX"
    return found


def level(capability: Version) -> int:
    """The level of the kernels that run on a device: the rule of ``facts_of`` in csrc/cuda/device.cpp."""
    return 90 if capability == (9, 0) else 80 if capability >= (8, 0) else 75


def why_not(built: dict[str, Any]) -> list[str]:
    """Every reason why CUDA ops cannot run on torch's current device; ``built``: the facts of the build, or empty."""
    if torch.version.cuda is None:
        return [f"this torch ({torch.__version__}) is built without CUDA: install one with it"]
    if not torch.cuda.is_available():
        return [_why_no_device()]
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        return ["the device has compute capability {}.{}, and 7.5 is the least supported".format(*capability)]
    return _why_no_code(capability, built) if built.get("cuda_ops") else []


def _why_no_device() -> str:
    found = driver()
    if found is None:
        return "torch finds no CUDA device, and no NVIDIA driver is installed (libcuda.so.1)"
    wanted = _version(torch.version.cuda)
    if found[0] < wanted[0]:
        return (f"the driver is too old for this torch: it knows CUDA up to {_text(found)}, and torch is built for "
                f"{_text(wanted)}: update the driver, or install a torch for CUDA {found[0]}")
    return "torch finds no CUDA device"


def _why_no_code(capability: Version, built: dict[str, Any]) -> list[str]:
    found, wanted = driver(), _version(built["cuda_compiler"])
    code = code_for(capability, built["cuda_architectures"])
    rebuild = "run `VITSPARSE_CUDA_ARCHS={}{} pip install .` in the source folder".format(*capability)
    if code is None:
        here = built["cuda_architectures"].replace(";", ", ")
        return [f"this build has neither machine code nor PTX for compute capability {_text(capability)} (it is for "
                f"{here}): {rebuild}"]
    if found is not None and found[0] < wanted[0]:
        return [f"the driver is too old for this build: it knows CUDA up to {_text(found)}, and nvcc was "
                f"{_text(wanted)}: update the driver, or build with an nvcc of CUDA {found[0]} (CUDACXX=...)"]
    if found is not None and code == "PTX" and found < wanted:
        return [f"the driver knows CUDA up to {_text(found)} and cannot compile PTX of {_text(wanted)}, all that this "
                f"build has for the device: update the driver, or {rebuild}"]
    return []


def _version(text: str) -> Version:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _text(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
