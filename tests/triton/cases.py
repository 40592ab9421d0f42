"""Calls of the Triton ops: what they are tested and compiled with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitsparse.backends import triton


@dataclass(frozen=True)
class Case:
    """One call of an op, by name: ``torch.ops.vitsparse.{op}_triton(*arguments)``."""

    op: str
    label: str
    arguments: tuple[Any, ...]

    def launch(self) -> Any:
        """Call the launcher itself, past torch's dispatcher."""
        return getattr(triton.kernels(self.op), self.op)(*self.arguments)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Case:
        """The same call with ``change`` done to every floating-point tensor."""
        def one(x: Any) -> Any:
            if isinstance(x, list):
                return [one(y) for y in x]
            return change(x) if isinstance(x, Tensor) and x.is_floating_point() else x
        return Case(self.op, self.label, tuple(one(x) for x in self.arguments))

    def to(self, device: str) -> Case:
        """The same call on ``device``."""
        def one(x: Any) -> Any:
            return [one(y) for y in x] if isinstance(x, list) else x.to(device) if isinstance(x, Tensor) else x
        return Case(self.op, self.label, tuple(one(x) for x in self.arguments))


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape)


def linear(images: int, tokens: int, inputs: int, outputs: int, bias: str = "shared", activation: str = "gelu") -> Case:
    biases = {"none": None, "shared": random(outputs), "per token": random(tokens, outputs)}
    return Case("linear", f"{tokens}x{inputs}x{outputs}, bias {bias}, {activation}",
                (random(images, tokens, inputs), random(outputs, inputs, scale=inputs**-0.5), biases[bias], activation))


def sum_norm(images: int, tokens: int, width: int, senders: int, offset: bool = True) -> Case:
    return Case("sum_norm", f"{senders} senders of {tokens}x{width}" + ", offset" * offset,
                ([random(images, tokens, width) for _ in range(senders)], random(tokens, width) if offset else None,
                 1e-6))


def attention(images: int, queries: int, keys: int, heads: int, head_dim: int, keep: bool = False) -> Case:
    q, k, v = (random(images, rows, heads * head_dim) for rows in (queries, keys, keys))
    return Case("attention", f"{queries}x{keys}, {heads} heads of {head_dim}" + ", head_keep" * keep,
                (q, k, v, heads, head_dim**-0.5, torch.rand(images, heads) < 0.5 if keep else None))


def qkv_attention(images: int, tokens: int, width: int, heads: int, head_dim: int, keep: bool = False) -> Case:
    weight = random(3 * heads * head_dim, width, scale=width**-0.5)
    return Case("qkv_attention", f"{tokens}x{width}, {heads} heads of {head_dim}" + ", head_keep" * keep,
                (random(images, tokens, width), weight, random(3 * heads * head_dim), heads, head_dim**-0.5,
                 torch.rand(images, heads) < 0.5 if keep else None))


def mlp(rows: tuple[int, int], width: int, hidden: int, outputs: int, senders: int = 1, rest: bool = True) -> Case:
    """``rows``: images and tokens; ``rest``: with an offset and a last bias."""
    return Case("mlp", f"{rows[1]}x{width}, {hidden} units, {outputs} outputs, {senders} senders" + ", rest" * rest,
                ([random(*rows, width) for _ in range(senders)], random(rows[1], width) if rest else None, 1e-6,
                 random(hidden, width, scale=width**-0.5), random(hidden), random(outputs, hidden, scale=hidden**-0.5),
                 random(outputs) if rest else None))


def apply_pattern(images: int, queries: int, keys: int, heads: int, head_dim: int) -> Case:
    return Case("apply_pattern", f"{queries}x{keys}, {heads} heads of {head_dim}",
                (random(heads, queries, keys).softmax(-1), random(images, keys, heads * head_dim)))


def aot_cases() -> Iterator[Case]:
    """The products of the model of the tables (65 tokens, width 256, 8 heads of 32, MLP 1024) and of ViT-B, in float32.

    Compile one with :func:`tests.triton.ahead.compiling` around ``case.mapped(...).launch()``.
    """
    yield linear(2, 65, 256, 768, activation="none")
    yield linear(2, 65, 256, 1024)
    yield linear(2, 65, 256, 256, "per token", "none")
    yield sum_norm(2, 65, 256, 4)
    yield sum_norm(2, 197, 768, 2)
    yield attention(2, 65, 65, 8, 32)
    yield attention(2, 197, 197, 4, 64)
    yield attention(2, 65, 65, 2, 128, keep=True)
    yield qkv_attention(2, 65, 256, 8, 32)
    yield qkv_attention(2, 65, 256, 4, 64, keep=True)
    yield qkv_attention(2, 64, 256, 8, 32)
    yield qkv_attention(2, 96, 256, 2, 64)
    yield qkv_attention(2, 145, 256, 4, 32)
    yield mlp((2, 65), 256, 1024, 256, senders=3)
    yield mlp((2, 65), 384, 1536, 384)
    yield mlp((2, 65), 512, 512, 512)
    yield apply_pattern(2, 65, 65, 8, 32)
