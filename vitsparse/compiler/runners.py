"""Running what was compiled on the backends that have kernels of their own, and the ways to do so on a GPU."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import torch
from torch import Tensor

from ..errors import InputError
from ..ops import run_program
from .compiled import Compiled, Packed
from .plan import Plan

WAYS = {"fused": ("steps", "gpu_mlp"), "steps": ("steps", "gpu"), "groups": ("steps", "gpu"),
        "waves": ("waves", "gpu_norm"),
        "persistent": ("persistent", "gpu_apart")}
"""How a model runs on a GPU: launches (``ops/run_program.py``) and the plan's target. ``fused`` gives each MLP to one
kernel, for many rows; ``steps`` is a launch for each step; ``groups`` the same for a few images after the other, so
that what a step writes is still in the cache when the next one reads it; ``waves`` is one launch for all steps that may
run at once, and ``persistent`` one in all, for a single image."""
WAYS_OF = {"cuda": tuple(WAYS), "triton": ("fused", "steps")}
SMALLEST_GROUP = 8
ROWS_PER_BLOCK = 32
TRITON_OPS = ("linear", "sum_norm", "attention", "qkv_attention", "mlp", "apply_pattern")


def run_kernels(compiled: Compiled | Packed, which: str, images: Tensor, backend: str, how: str = "auto") -> Tensor:
    """The plan ``which`` on ``images`` by backend ``cpu``, ``cuda`` or ``triton``: [B, rows, width], no gradient."""
    images = images.detach().contiguous()
    if backend == "cpu":
        program = compiled.program(which)
        return run_program.call(images, program.code, program.blob)
    launches, target = WAYS[usual_way(backend, images, compiled) if how == "auto" else how]
    if backend == "triton":
        return compiled.folded(which, target).run(images, triton_ops())
    follow_torch()
    program = compiled.program(which, target)
    if how == "groups":
        groups = images.split(group_size(images.device, compiled.plan(which, target), images.element_size()))
        return torch.cat([run_program.call(group, program.code, program.blob, program.device_code, launches)
                          for group in groups])
    return run_program.call(images, program.code, program.blob, program.device_code, launches)


def follow_torch() -> None:
    """Products add up in float16 where torch's own may."""
    torch.ops.vitsparse.cuda_half_accumulate(torch.backends.cuda.matmul.allow_fp16_accumulation)


def usual_way(backend: str, images: Tensor, compiled: Compiled | Packed) -> str:
    """The way that is likely best without trying: by whether the rows of an MLP fill the device."""
    rows = len(images) * compiled.plan("logits").config.num_tokens
    if rows < ROWS_PER_BLOCK * multiprocessors(images.device):
        return "waves" if backend == "cuda" else "steps"
    return "steps" if capability(images.device) >= (9, 0) else "fused"  # separate products have wgmma there


def group_size(device: torch.device, plan: Plan, number_bytes: int) -> int:
    """How many images may run together so that their values fill half of the second-level cache, at least a few."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    return max(SMALLEST_GROUP, cache // 2 // max(1, plan.memory[1] * number_bytes))


def check_images(images: Tensor, like: Tensor, backend: str) -> None:
    """Raise :class:`InputError` unless ``images`` have the dtype and device of the parameter ``like``."""
    if (images.dtype, images.device) != (like.dtype, like.device):
        raise InputError(f"the {backend} backend reads images of the model's own dtype and device", where="images",
                         expected=_kind(like), found=_kind(images),
                         remedy="move the images or the model: .to(device, dtype)")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; 1 for what only pretends to be one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU; (0, 0) for what only pretends to be one."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@functools.cache
def triton_ops() -> SimpleNamespace:
    """The Triton ops by the names of their contracts."""
    return SimpleNamespace(**{name: getattr(torch.ops.vitsparse, f"{name}_triton") for name in TRITON_OPS})
