"""Running a plan with kernels that are called from Python (Triton's), operands folded once and kept."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .execute import Environment, class_token_of
from .fold import folded_offset, folded_product
from .joined_steps import Joined, Mlp, QkvAttention
from .plan import Plan
from .steps import Embed, Linear, Step, SumNorm, SumNorms


class Folded:
    """A plan and what its kernels multiply by and add, in the dtype and on the device of ``like``."""

    def __init__(self, plan: Plan, parameters: dict[str, Tensor], like: Tensor):
        self.plan, self.constants = plan, plan.constants
        self._products: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._offsets: dict[int, Tensor | None] = {}
        with torch.no_grad():
            for step in plan.steps:
                self._fold(step, parameters, like)

    def _fold(self, step: Step, parameters: dict[str, Tensor], like: Tensor) -> None:
        match step:
            case Linear():
                weight, bias = folded_product(parameters, step)
                self._products[id(step)] = _as(weight, like), None if bias is None else _as(bias, like)
            case SumNorm():
                offset = folded_offset(parameters, self.constants, step)
                rows = step.out.rows[1] - step.out.rows[0]
                self._offsets[id(step)] = None if offset is None else _as(offset.expand(rows, -1), like)
            case SumNorms():
                for part in step.parts:
                    self._fold(part, parameters, like)
            case Joined():
                for part in step.steps:
                    self._fold(part, parameters, like)
            case Embed():
                self._products[id(step)] = _embedding(parameters, step, like)

    def run(self, images: Tensor, ops: ModuleType) -> Tensor:
        """The plan's output [B, rows, width] for ``images`` [B, C, S, S], by the functions of ``ops``; no gradient."""
        env = _Kernels(self.plan, {}, self.constants)
        env.products, env.offsets = self._products, self._offsets
        for step in self.plan.steps:
            env.run(step, images, ops)
        out = env.read(self.plan.output).expand(images.shape[0], -1, -1)
        return out.clone() if self.plan.output.name in self.constants else out


class _Kernels(Environment):
    """An environment whose products, sums and joined steps are calls of one kernel each."""

    products: dict[int, tuple[Tensor, Tensor | None]]
    offsets: dict[int, Tensor | None]

    def offset(self, step: SumNorm) -> Tensor | None:
        return self.offsets[id(step)]

    def run(self, step: Step, images: Tensor, ops: ModuleType) -> None:
        own = _RUN.get(type(step))
        return super().run(step, images, ops) if own is None else own(self, step, images, ops)


def _as(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.device, like.dtype).contiguous()


def _embedding(parameters: dict[str, Tensor], step: Embed, like: Tensor) -> tuple[Tensor, Tensor]:
    """The patch product for all tokens: patches [T, K], zeros for the class token, which is a bias of its own row."""
    weight, bias = parameters["patch_embed.proj.weight"].flatten(1), parameters["patch_embed.proj.bias"].double()
    positions = parameters["pos_embed"][0].double()
    rows = torch.cat([class_token_of(parameters, step)[0].double(), bias.expand(len(positions) - 1, -1)])
    rows = rows + positions if step.positions else rows
    return _as(weight, like), _as(rows[step.out.rows[0]: step.out.rows[1]], like)


def _embed(env: _Kernels, step: Embed, images: Tensor, ops: ModuleType) -> None:
    size = env.config.patch_size
    patches = rearrange(images, "b c (y i) (x j) -> b (y x) (c i j)", i=size, j=size)
    tokens = F.pad(patches, (0, 0, 1, 0))[:, step.out.rows[0]: step.out.rows[1]]
    env.write(step.out, ops.linear(tokens, *env.products[id(step)], "none"))


def _linear(env: _Kernels, step: Linear, images: Tensor, ops: ModuleType) -> None:
    out = ops.linear(env.read(step.source), *env.products[id(step)], step.activation)
    env.write(step.out, out, accumulate=step.accumulate)


def _qkv_attention(env: _Kernels, step: QkvAttention, images: Tensor, ops: ModuleType) -> None:
    heads, scale = step.attention.heads, step.attention.head_dim**-0.5
    x = env.read(step.qkv.source)
    env.write(step.attention.out, ops.qkv_attention(x, *env.products[id(step.qkv)], heads, scale))


def _mlp(env: _Kernels, step: Mlp, images: Tensor, ops: ModuleType) -> None:
    (weight1, bias1), (weight2, bias2) = env.products[id(step.up)], env.products[id(step.down)]
    senders = [env.read(view) for view in step.input.senders]
    out, total = ops.mlp(senders, env.offset(step.input), env.config.norm_eps, weight1, bias1, weight2, bias2)
    env.write(step.down.out, out)
    if step.input.total is not None:
        env.write(step.input.total, total)


_RUN: dict[type[Step], Callable[[_Kernels, Step, Tensor, ModuleType], None]] = {
    Embed: _embed, Linear: _linear, QkvAttention: _qkv_attention, Mlp: _mlp,
}  # type: ignore[dict-item]
