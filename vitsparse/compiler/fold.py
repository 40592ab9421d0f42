"""What a kernel multiplies by and adds: the affine part of each LayerNorm, LayerScale and shares of biases, folded into
one matrix and one bias.

    ((x * g + c) W^T + b) * s  =  x (s W diag(g))^T + s (b + W c)
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .execute import bias_of, scaled_output_bias, weight_of
from .steps import Linear, SumNorm


def folded_product(parameters: Mapping[str, Tensor], step: Linear) -> tuple[Tensor, Tensor | None]:
    """Matrix [N, K] and bias [N] (or None) of a product, float64."""
    weight = weight_of(parameters, step.weight).double()
    bias = bias_of(parameters, step.bias)
    bias = None if bias is None else bias.double()
    if step.norm is not None:
        shift = weight @ parameters[f"{step.norm}.bias"].double()
        bias = shift if bias is None else bias + shift
        weight = weight * parameters[f"{step.norm}.weight"].double()
    if step.scale is not None:
        scale = parameters[step.scale].double()
        weight, bias = weight * scale[:, None], None if bias is None else bias * scale
    return weight, bias


def folded_offset(parameters: Mapping[str, Tensor], constants: Mapping[str, Tensor], step: SumNorm) -> Tensor | None:
    """Offset and the b_O before a reader as one constant, float64: [rows, D], or [D] where there are only b_O."""
    terms = [scaled_output_bias(parameters, layer).double() for layer in step.biases]
    rows = step.out.rows
    if step.offset is not None:
        terms.append(constants[step.offset][rows[0]: rows[1]].double())
    return sum(terms[1:], terms[0]) if terms else None
