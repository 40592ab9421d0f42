"""What training does, as one frozen value: schedule, regularisation, precision, seed, and how often to write."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from ..errors import InputError, nearest

Amp = Literal["auto", "off", "fp16", "bf16"]
Optimizer = Literal["adamw", "muon"]

# How often to write and how steps are launched does not change what is learned, so a resumed run may change it.
FREE_FIELDS = frozenset({"cuda_graph", "record_every", "checkpoint_every_epochs", "checkpoint_every_s",
                         "checkpoint_every_steps"})

_INTEGERS = {"epochs": 1, "batch_size": 1, "seed": 0, "record_every": 0, "checkpoint_every_epochs": 0,
             "checkpoint_every_steps": 0}
_NUMBERS = {"lr": (0, math.inf), "weight_decay": (0, math.inf), "eps": (0, 1), "warmup_epochs": (0, math.inf),
            "min_lr": (0, math.inf), "clip_grad": (0, math.inf), "label_smoothing": (0, 1), "distill_weight": (0, 1),
            "temperature": (0, math.inf), "checkpoint_every_s": (0, math.inf)}
_POSITIVE = ("lr", "eps", "temperature")


@dataclass(frozen=True)
class Recipe:
    """AdamW (Loshchilov and Hutter 2019), or Muon and AdamW, with linear warm-up and a cosine schedule per step.

    Raises :class:`InputError` naming the field when a value is out of its range.
    """

    epochs: int = 30
    batch_size: int = 128
    """images per update; for whoever builds the stream"""
    optimizer: Optimizer = "adamw"
    """muon: the matrices of the blocks by Muon (Jordan et al. 2024), its updates scaled to the size of AdamW's (Liu et
    al. 2025, arXiv:2502.16982), so that lr and weight_decay mean the same; everything else by AdamW"""
    lr: float = 1e-3
    """the learning rate at the end of the warm-up, its largest"""
    weight_decay: float = 0.05
    """on matrices only: not on biases, norms, class token and position embedding"""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup_epochs: float = 1.0
    """may be a fraction"""
    min_lr: float = 1e-6
    """the learning rate at the end of the schedule"""
    clip_grad: float = 1.0
    """largest total norm of the gradients; 0: no clipping"""
    label_smoothing: float = 0.0
    amp: Amp = "auto"
    """mixed precision; auto: fp16 with a loss scaler on CUDA before sm_80, bf16 from there on, off on CPU"""
    distill_weight: float = 0.0
    """w in the loss (1 - w) CE + w T^2 KL(teacher_T || model_T)"""
    temperature: float = 1.0
    """T, by which the logits are divided for distillation"""
    seed: int = 0
    record_every: int = 50
    """updates between two records of the gradient flow; 0: none"""
    checkpoint_every_epochs: int = 1
    """0: not by epochs"""
    checkpoint_every_s: float = 300.0
    """seconds; 0: not by time"""
    checkpoint_every_steps: int = 0
    """0: not by updates"""
    cuda_graph: bool = False
    """record a step once and replay it, on CUDA in one process and without a loss scaler; elsewhere it changes nothing.
    For models that do the same in every step: what they decide in Python is decided while recording"""

    def __post_init__(self) -> None:
        for name, low in _INTEGERS.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise _refused(name, f"an integer, at least {low}", value)
        for name, (low, high) in _NUMBERS.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not (low <= value <= high and math.isfinite(value)):
                raise _refused(name, f"a number from {low} to {high}", value)
            if name in _POSITIVE and value == 0:
                raise _refused(name, "a number above 0", value)
        betas = self.betas
        if not isinstance(betas, tuple | list) or len(betas) != 2 or not all(
                type(beta) in (int, float) and 0 <= beta < 1 for beta in betas):
            raise _refused("betas", "two numbers, at least 0 and below 1", betas)
        object.__setattr__(self, "betas", tuple(betas))
        for name, known in (("amp", get_args(Amp)), ("optimizer", get_args(Optimizer))):
            if getattr(self, name) not in known:
                raise _refused(name, " or ".join(known), getattr(self, name))
        if type(self.cuda_graph) is not bool:
            raise _refused("cuda_graph", "true or false", self.cuda_graph)
        if self.min_lr > self.lr:
            raise _refused("min_lr", f"at most lr = {self.lr}", self.min_lr)
        if self.warmup_epochs > self.epochs:
            raise _refused("warmup_epochs", f"at most epochs = {self.epochs}", self.warmup_epochs)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of :meth:`from_dict`."""
        return dataclasses.asdict(self) | {"betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe with these fields, the others at their defaults; unknown names are refused."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise InputError("unknown field of the training recipe", where=name, expected=", ".join(sorted(known)),
                                 remedy=nearest(name, known))
        return cls(**values)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of update number ``step`` (from 0).

    Linear to ``lr`` over the warm-up, ``lr (step + 1) / warmup``, then half a cosine down to ``min_lr``
    (Loshchilov and Hutter 2017, without restarts).
    """
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    progress = (step - warmup) / (recipe.epochs * steps_per_epoch - warmup)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class AmpPolicy:
    """The autocast dtype (None: full precision) and whether the loss is scaled against fp16 underflow."""

    dtype: torch.dtype | None = None
    scale_loss: bool = False


def amp_policy(mode: Amp, device_type: str, capability: tuple[int, int] | None = None) -> AmpPolicy:
    """What ``Recipe.amp`` means on a device; ``capability`` is that of the CUDA device, such as ``(7, 5)``.

    ``"auto"`` is off on CPU, fp16 with a loss scaler on CUDA before sm_80 (no bf16 there), bf16 from sm_80 on.
    Raises :class:`InputError` where the device cannot do what was asked for.
    """
    has_bf16 = device_type == "cuda" and capability is not None and capability >= (8, 0)
    if mode == "auto":
        mode = "off" if device_type != "cuda" else "bf16" if has_bf16 else "fp16"
    if mode == "off":
        return AmpPolicy()
    if mode == "fp16":
        if device_type != "cuda":
            raise _refused("amp", "auto, off or bf16 on this device", mode)
        return AmpPolicy(torch.float16, scale_loss=True)
    if device_type == "cuda" and not has_bf16:
        raise _refused("amp", f"auto, off or fp16 on a device of capability {capability}", mode)
    return AmpPolicy(torch.bfloat16)


def _refused(name: str, expected: str, found: object) -> InputError:
    return InputError("the training recipe has a value out of range", where=name, expected=expected, found=repr(found))
