"""Runtimes that are imported only where they are used, and kept from reporting usage over the network."""

from __future__ import annotations

import importlib.util
import os
import sys
from types import ModuleType

from ..errors import InputError


def require(package: str, where: str, remedy: str = "pip install 'vitsparse[export]'") -> None:
    """Raise :class:`InputError`, naming ``where`` it is needed, if a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"the package {package} is not installed", where=where, remedy=remedy)


def import_openvino() -> ModuleType:
    """The package ``openvino``."""
    # Its converter reports usage wherever this package can be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def import_onnxruntime() -> ModuleType:
    """The package ``onnxruntime``."""
    # Read once, at the first import: no events, no upload, no identifier in the user's cache folder.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
