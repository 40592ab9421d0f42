"""Running a plan with torch: one small function per kind of step, over a table of ops.

``ops`` is ``backends.reference`` (the definition) or ``backends.portable`` (standard ops, differentiable, exportable).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from .joined_steps import Joined, Mlp, NormLinear, QkvAttention
from .plan import Plan
from .steps import (
    ApplyPattern,
    Attention,
    Bias,
    Embed,
    Linear,
    MeanRows,
    Range,
    Step,
    SumNorm,
    SumNorms,
    View,
    Weight,
)


def run_plan(plan: Plan, images: Tensor, parameters: Mapping[str, Tensor], constants: Mapping[str, Tensor],
             ops: ModuleType) -> Tensor:
    """The plan's output [B, rows, width] for ``images`` [B, C, S, S]; differentiable in images and parameters."""
    env = Environment(plan, parameters, constants)
    for step in plan.steps:
        env.run(step, images, ops)
    out = env.read(plan.output).expand(images.shape[0], -1, -1)
    return out.clone() if plan.output.name in constants else out  # nobody may write into the stored one


class Environment:
    """Values while a plan runs: [B, rows, width] each, constants with B = 1."""

    def __init__(self, plan: Plan, parameters: Mapping[str, Tensor], constants: Mapping[str, Tensor]):
        self.config, self.parameters, self.constants = plan.config, parameters, constants
        self._whole = plan.values
        self._values: dict[str, Tensor] = {}
        self._first_row: dict[str, int] = {}

    def read(self, view: View) -> Tensor:
        """The tensor [B, rows, cols] behind a view."""
        if view.name in self.constants:
            value, first = self.constants[view.name][None], 0
        else:
            value, first = self._values[view.name], self._first_row[view.name]
        return value[:, view.rows[0] - first: view.rows[1] - first, view.cols[0]: view.cols[1]]

    def write(self, view: View, value: Tensor, *, accumulate: bool = False) -> None:
        """Store a value or some columns of one, or add to it."""
        self._first_row[view.name] = view.rows[0]
        whole = self._whole.get(view.name, view)
        if view.cols == whole.cols:
            self._values[view.name] = self._values[view.name] + value if accumulate else value
            return
        if view.name not in self._values:
            self._values[view.name] = value.new_empty(*value.shape[:2], whole.width)
        self._values[view.name][..., view.cols[0]: view.cols[1]] = value

    def constant_rows(self, name: str | None, rows: Range) -> Tensor | None:
        """Token rows of a constant [T, D]."""
        return None if name is None else self.constants[name][rows[0]: rows[1]]

    def offset(self, step: SumNorm) -> Tensor | None:
        """What a reader's input holds besides its senders: folded constants and the b_O before it."""
        terms = [scaled_output_bias(self.parameters, layer) for layer in step.biases]
        constant = self.constant_rows(step.offset, step.out.rows)
        if constant is not None:
            terms.append(constant)
        if not terms:
            return None
        total = sum(terms[1:], terms[0])
        return total.expand(step.out.rows[1] - step.out.rows[0], -1)

    def run(self, step: Step, images: Tensor, ops: ModuleType) -> None:
        """Execute one step."""
        _RUN[type(step)](self, step, images, ops)


def scaled_output_bias(parameters: Mapping[str, Tensor], layer: int) -> Tensor:
    """b_O of a layer times its LayerScale, [D]."""
    bias = parameters[f"blocks.{layer}.attn.proj.bias"]
    scale = parameters.get(f"blocks.{layer}.ls1.gamma")
    return bias if scale is None else bias * scale


def take(tensor: Tensor, dim: int, ranges: tuple[Range, ...]) -> Tensor:
    """The entries of ``ranges`` along ``dim``, in order; a view where that is possible."""
    parts = [tensor.narrow(dim, start, stop - start) for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def weight_of(parameters: Mapping[str, Tensor], weight: Weight) -> Tensor:
    """The matrix [N, K] that a Linear step multiplies by."""
    return take(take(parameters[weight.key], 0, weight.rows), 1, weight.cols)


def bias_of(parameters: Mapping[str, Tensor], bias: Bias | None) -> Tensor | None:
    """The bias [N] of a Linear step."""
    if bias is None:
        return None
    values = take(parameters[bias.key], 0, bias.rows)
    return values if bias.scale == 1 else values * bias.scale


def class_token_of(parameters: Mapping[str, Tensor], step: Embed) -> Tensor:
    """The class token [1, 1, D], or the zeros that are left of it."""
    return parameters["cls_token"] if step.class_token else parameters["patch_embed.proj.bias"].new_zeros(
        1, 1, step.out.width)


def _embed(env: Environment, step: Embed, images: Tensor, ops: ModuleType) -> None:
    weight, bias = env.parameters["patch_embed.proj.weight"], env.parameters["patch_embed.proj.bias"]
    patches = F.conv2d(images, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    class_token = class_token_of(env.parameters, step)
    tokens = torch.cat([class_token.expand(images.shape[0], -1, -1), patches], dim=1)
    if step.positions:
        tokens = tokens + env.parameters["pos_embed"]
    env.write(step.out, tokens[:, step.out.rows[0]: step.out.rows[1]])


def _sum_norm(env: Environment, step: SumNorm, images: Tensor, ops: ModuleType) -> None:
    terms = [*map(env.read, step.senders), *(-env.read(view) for view in step.minus)]
    total, normed = ops.sum_norm(terms, env.offset(step), env.config.norm_eps)
    for view, value in ((step.total, total), (step.normed, normed)):
        if view is not None:
            env.write(view, value)


def _sum_norms(env: Environment, step: SumNorms, images: Tensor, ops: ModuleType) -> None:
    for part in step.parts:
        _sum_norm(env, part, images, ops)


def _linear(env: Environment, step: Linear, images: Tensor, ops: ModuleType) -> None:
    source = env.read(step.source)
    if step.norm is not None:
        source = source * env.parameters[f"{step.norm}.weight"] + env.parameters[f"{step.norm}.bias"]
    weight, bias = weight_of(env.parameters, step.weight), bias_of(env.parameters, step.bias)
    out = ops.linear(source, weight, bias, step.activation)
    if step.scale is not None:
        out = out * env.parameters[step.scale]
    env.write(step.out, out, accumulate=step.accumulate)


def _attention(env: Environment, step: Attention, images: Tensor, ops: ModuleType) -> None:
    q, k, v = env.read(step.q), env.read(step.k), env.read(step.v)
    env.write(step.out, ops.attention(q, k, v, step.heads, step.head_dim**-0.5))


def _joined(env: Environment, step: Joined, images: Tensor, ops: ModuleType) -> None:
    for part in step.steps:
        env.run(part, images, ops)


def _apply_pattern(env: Environment, step: ApplyPattern, images: Tensor, ops: ModuleType) -> None:
    pattern = env.constants[step.pattern][:, step.out.rows[0]: step.out.rows[1]]
    env.write(step.out, ops.apply_pattern(pattern, env.read(step.v)))


def _mean_rows(env: Environment, step: MeanRows, images: Tensor, ops: ModuleType) -> None:
    env.write(step.out, env.read(step.source).mean(1, keepdim=True))


_RUN: dict[type[Step], Callable[[Environment, Step, Tensor, ModuleType], None]] = {
    Embed: _embed, SumNorm: _sum_norm, SumNorms: _sum_norms, Linear: _linear, Attention: _attention,
    ApplyPattern: _apply_pattern, MeanRows: _mean_rows, QkvAttention: _joined,
    NormLinear: _joined, Mlp: _joined,
}
