"""What is here, what is built, what can be used and why not: the facts behind ``vitsparse doctor``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from . import cuda_device, native, triton

PACKAGES = ("vitsparse", "torch", "numpy", "safetensors", "einops", "torchvision", "timm", "triton", "scikit-learn",
            "pyarrow", "matplotlib", "tyro", "pydantic")


def collect() -> dict[str, Any]:
    """Every fact as plain values, ready for JSON. Loads the native libraries, to be sure of what it says."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": _machine(),
        "built": native.build_facts(),
        "backends": {name: {"usable": not reasons, "why_not": reasons} for name, reasons in _backends().items()},
        "gpu_verification": _verification(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    core = native.core()
    has_cuda = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if has_cuda else []
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_isa": core.cpu_isa() if core else None,
        "torch_cuda": torch.version.cuda,
        "driver_cuda": "{}.{}".format(*found) if (found := cuda_device.driver()) else None,
        "gpus": [_gpu(gpu) for gpu in gpus],
    }


def _gpu(gpu: Any) -> dict[str, Any]:
    """A device of torch, with level and kind of the code that this build has for it: None where there is none."""
    capability, built = (gpu.major, gpu.minor), native.build_facts()
    code = cuda_device.code_for(capability, built["cuda_architectures"]) if built.get("cuda_ops") else None
    return {"name": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", "memory_bytes": gpu.total_memory,
            "cuda_level": cuda_device.level(capability) if code else None, "cuda_code": code}


def _backends() -> dict[str, list[str]]:
    return {"reference": [], "torch": [], "cpu": native.why_not("cpu"), "cuda": native.why_not("cuda"),
            "triton": triton.why_not()}


def _verification() -> dict[str, Any]:
    """Whether the GPU sources of this build are those that last passed ``pytest -m gpu`` on a real GPU."""
    facts = native.build_facts()
    if not facts.get("verified_sources"):
        return {"state": "never", "text": "the CUDA and Triton kernels have never been verified on a real GPU"}
    where = f"on {facts['verified_gpu']}, {facts['verified_date']}, levels {facts['verified_levels']}"
    if facts["verified_sources"] == facts["gpu_sources"]:
        return {"state": "current", "text": f"the CUDA and Triton kernels passed their tests {where}"}
    return {"state": "outdated",
            "text": f"the CUDA and Triton kernels have changed since they last passed their tests ({where})"}
