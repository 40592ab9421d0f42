"""The bridge to the Triton kernels: imports triton only when one of them is called, and says why it cannot."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

import torch

MIN_CAPABILITY = (8, 0)  # below it Triton's dot uses no tensor cores (from 3.3 on): slower than plain torch


def kernels(op: str) -> ModuleType:
    """The module of ``op``'s Triton kernels."""
    return importlib.import_module(f"vitsparse._triton.{op}")


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors (``TRITON_INTERPRET=1`` at start-up)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(device: str = "cuda") -> list[str]:
    """Every reason why the Triton kernels cannot run on tensors of ``device``; empty when they can."""
    reasons = []
    if importlib.util.find_spec("triton") is None:
        reasons.append("triton is not installed")
    if interpreted():
        return reasons
    if device != "cuda":
        return [*reasons, f"Triton kernels run on CUDA tensors, not on {device} (unless TRITON_INTERPRET=1)"]
    if not torch.cuda.is_available():
        reasons.append("torch finds no CUDA device")
    elif torch.cuda.get_device_capability() < MIN_CAPABILITY:
        reasons.append("Triton has no tensor cores on devices below compute capability 8.0; use the cuda backend")
    return reasons


def available(device: str = "cuda") -> bool:
    """Whether the Triton kernels can run on tensors of ``device``."""
    return not why_not(device)
