"""The native op libraries: loaded once, on first need, and able to say why they cannot be used.

Importing this module loads nothing. The libraries register kernels for ops whose schemas ``vitsparse.ops`` owns.
"""

from __future__ import annotations

import ctypes
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from . import cuda_device

LIBRARIES = ("cpu", "cuda")
AGAIN = "run `pip install .` in the source folder"

_load_failures: dict[str, list[str]] = {}  # library -> reasons it did not load; empty list: it is loaded


def core() -> ModuleType | None:
    """The pybind11 module ``vitsparse._core``, or None where it is not built."""
    try:
        return importlib.import_module("vitsparse._core")
    except ImportError:
        return None


def build_facts() -> dict[str, Any]:
    """What the build found and made; empty where nothing is built."""
    module = core()
    return module.build_facts() if module else {}


def why_not(library: str) -> list[str]:
    """Every reason why ``"cpu"`` or ``"cuda"`` cannot be used in this process; empty when it can. Loads the library."""
    if library not in LIBRARIES:
        raise ValueError(f"no native library is called {library!r}; there are {', '.join(LIBRARIES)}")
    if library not in _load_failures:
        if library == "cuda" and (reasons := cuda_device.why_not(build_facts())):
            return reasons + _why_not_built(library)
        _load_failures[library] = _load(library)
    return _load_failures[library]


def available(library: str) -> bool:
    """Whether ``"cpu"`` or ``"cuda"`` can be used in this process. Loads the library."""
    return not why_not(library)


def path(library: str) -> Path:
    """Where the library lies when it is built."""
    return Path(__file__).resolve().parent.parent / f"libvitsparse_{library}.so"


def _why_not_built(library: str) -> list[str]:
    if not path(library).is_file():
        built = build_facts()
        half = f"the native parts are {'half' if built else 'not'} built: {AGAIN}"
        return [f"{path(library).name} is missing: {built.get(f'why_no_{library}_ops') or half}"]
    return [] if build_facts() else [f"vitsparse._core does not import, so the native parts are half built: {AGAIN}"]


def _load(library: str) -> list[str]:
    if reasons := _why_not_built(library):
        return reasons
    try:
        torch.ops.load_library(str(path(library)))
    except (OSError, RuntimeError) as error:
        return [f"{path(library).name} does not load: {error}; if torch or CUDA changed since the build, {AGAIN}"]
    if library == "cuda" and _sources_in(path(library)) != build_facts()["gpu_sources"]:
        return [f"{path(library).name} is of another build than the rest: {AGAIN}"]
    return []


def _sources_in(library: Path) -> str | None:
    """The hash of the GPU sources that a loaded library was made of (csrc/build_sources.cpp)."""
    try:
        return ctypes.c_char_p.in_dll(ctypes.CDLL(str(library)), "vitsparse_cuda_sources").value.decode()
    except ValueError:
        return None
