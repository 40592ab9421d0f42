"""The native op libraries: loaded once, on first need, and able to say why they cannot be used.

Importing this module loads nothing. The libraries register kernels for ops whose schemas ``vitsparse.ops`` owns.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

LIBRARIES = ("cpu", "cuda")
MIN_CAPABILITY = (7, 5)

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
    if library == "cuda" and (reasons := _why_no_device()):
        return reasons + _why_not_built(library)
    if library not in _load_failures:
        _load_failures[library] = _load(library)
    return _load_failures[library]


def available(library: str) -> bool:
    """Whether ``"cpu"`` or ``"cuda"`` can be used in this process. Loads the library."""
    return not why_not(library)


def path(library: str) -> Path:
    """Where the library lies when it is built."""
    return Path(__file__).resolve().parent.parent / f"libvitsparse_{library}.so"


def _why_not_built(library: str) -> list[str]:
    if path(library).is_file():
        return []
    unbuilt = "the native parts are not built: run `pip install .` in the source folder"
    reason = build_facts().get(f"why_no_{library}_ops") or unbuilt
    return [f"{path(library).name} is missing: {reason}"]


def _why_no_device() -> list[str]:
    if torch.version.cuda is None:
        return [f"this torch ({torch.__version__}) is built without CUDA"]
    if not torch.cuda.is_available():
        return ["torch finds no CUDA device"]
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        return ["the device has compute capability {}.{}, and 7.5 is the least supported".format(*capability)]
    return []


def _load(library: str) -> list[str]:
    if reasons := _why_not_built(library):
        return reasons
    try:
        torch.ops.load_library(str(path(library)))
    except (OSError, RuntimeError) as error:
        return [f"{path(library).name} does not load: {error}"]
    return []
