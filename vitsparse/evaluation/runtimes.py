"""Runtimes that are imported only where they are used, and kept from reporting usage over the network."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType

from ..errors import InputError

REMEDY = "pip install 'vitsparse[export]'"


def import_openvino(where: str) -> ModuleType:
    """The package ``openvino``. Raises :class:`InputError`, naming ``where`` it is needed, if it is not installed."""
    # Its converter reports usage wherever this package can be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_package("openvino", "OpenVINO", where)


def import_onnxruntime(where: str) -> ModuleType:
    """The package ``onnxruntime``; raises as :func:`import_openvino` does."""
    # Read once, when the package is first imported: no events, no upload, no identifier in the user's cache folder.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_package("onnxruntime", "ONNX Runtime", where)


def import_package(name: str, title: str, where: str) -> ModuleType:
    """The package ``name``, or :class:`InputError` calling it ``title``."""
    if importlib.util.find_spec(name) is None:
        raise InputError(f"{title} is not installed", where=where, remedy=REMEDY)
    return importlib.import_module(name)
