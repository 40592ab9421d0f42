"""Gradients of ops whose kernels have none of their own: the vector-Jacobian product of the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def differentiate_as(op: str, reference: Callable[..., Any]) -> None:
    """Register for ``op`` the gradient of ``reference``, which takes the same arguments and computes the same.

    The backward pass runs the reference once more and differentiates that: right on every backend, and paid only by
    those who train through kernels. Arguments may be tensors, lists of tensors, None, and plain values.
    """

    def setup_context(ctx, inputs: tuple, output: Any) -> None:
        flat, ctx.layout = _flatten(inputs)
        ctx.save_for_backward(*flat)

    def backward(ctx, *grads: Tensor | None):
        again = torch.is_grad_enabled()  # this pass will itself be differentiated: stay in the graph of the inputs
        with torch.enable_grad():
            flat = [x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_(x.is_floating_point())
                    for x in ctx.saved_tensors]
            outputs = reference(*_unflatten(ctx.layout, flat))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        used = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None]
        wanted = [x for x in flat if x.requires_grad]
        found = iter(torch.autograd.grad([y for y, _ in used], wanted, [g for _, g in used], allow_unused=True,
                                         create_graph=again))
        gradients = [next(found) if x.requires_grad else None for x in flat]
        layout = [(kind, None if kind == "value" else what) for kind, what in ctx.layout]
        return _unflatten(layout, gradients)

    torch.library.register_autograd(op, backward, setup_context=setup_context)


def _flatten(inputs: Sequence[Any]) -> tuple[list[Tensor], list[tuple[str, Any]]]:
    """The tensors among the inputs, and what puts them back: ("tensor", 1), ("tensors", how many) or ("value", it)."""
    flat, layout = [], []
    for value in inputs:
        if isinstance(value, Tensor):
            flat.append(value)
            layout.append(("tensor", 1))
        elif isinstance(value, (list, tuple)):
            flat.extend(value)
            layout.append(("tensors", len(value)))
        else:
            layout.append(("value", value))
    return flat, layout


def _unflatten(layout: Sequence[tuple[str, Any]], flat: Sequence[Any]) -> tuple[Any, ...]:
    values, rest = [], iter(flat)
    for kind, what in layout:
        if kind == "tensor":
            values.append(next(rest))
        elif kind == "tensors":
            values.append([next(rest) for _ in range(what)])
        else:
            values.append(what)
    return tuple(values)
