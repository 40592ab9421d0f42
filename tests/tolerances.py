"""How equal is equal: the only place with such numbers. Errors are relative to the largest logit, see :func:`error`."""

from __future__ import annotations

from torch import Tensor

FULL_CIRCUIT = {"float32": 5e-6, "float64": 1e-10}
"""All edges kept against the dense model, by dtype."""

ORACLE = 1e-10
"""Two float64 programs that compute the same formula in another order."""

BACKEND = 1e-5
"""A float32 backend against the edge-wise forward in float64."""

LOW_PRECISION_RATIO = 2.0
"""A low-precision backend may err at most this much more against float64 than plain PyTorch in that precision."""

STORED_IN_HALF = 5e-3
"""Weights and constants rounded to float16 (2**-11 each) in a model of two layers, computed in float32."""


def error(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected| / max |expected|, in float64; NaN anywhere gives NaN, which passes no comparison."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} against {tuple(expected.shape)}"
    return float((actual - expected).abs().max() / expected.abs().max())
