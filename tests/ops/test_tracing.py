"""The ops under torch.compile and torch.export: one graph, our ops as single nodes or only torch's own."""

from __future__ import annotations

import pytest
import torch

from tests.ops.kernels import needs_cpu_ops
from vitsparse.ops.apply_pattern import apply_pattern
from vitsparse.ops.attention import attention
from vitsparse.ops.linear import linear
from vitsparse.ops.sum_norm import sum_norm


class Layer(torch.nn.Module):
    """Half of a pruned block: two senders, one live head, one with a constant pattern, and a GELU."""

    def __init__(self, backend: str):
        super().__init__()
        self.backend = backend
        self.weight = torch.nn.Parameter(torch.randn(24, 8, generator=torch.Generator().manual_seed(0)))
        self.register_buffer("pattern", torch.full((2, 5, 5), 0.2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total, normed = sum_norm([x, 2 * x], None, 1e-6, self.backend)
        q, k, v = linear(normed, self.weight, None, "gelu", self.backend).chunk(3, dim=-1)
        return total + attention(q, k, v, 2, 0.5, self.backend) + apply_pattern(self.pattern, v, self.backend)


@needs_cpu_ops
@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_compiles_into_one_graph_with_gradients(backend):
    layer, x = Layer(backend), torch.randn(3, 5, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = Layer("reference")(x)
    result = compiled(x)
    assert torch.allclose(result, expected, atol=1e-5)
    result.square().sum().backward()
    reference = Layer("reference")
    reference(x).square().sum().backward()
    assert torch.allclose(layer.weight.grad, reference.weight.grad, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=needs_cpu_ops)])
def test_exports_with_a_free_batch(backend):
    layer = Layer(backend)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(layer, (torch.randn(3, 5, 8),), dynamic_shapes=({0: batch},))
    kinds = {node.target.namespace for node in exported.graph.nodes if node.op == "call_function"
             and isinstance(node.target, torch._ops.OpOverload)}
    assert ("vitsparse" in kinds) == (backend == "cpu")
    x = torch.randn(7, 5, 8)
    assert torch.allclose(exported.module()(x), Layer("reference")(x), atol=1e-5)
