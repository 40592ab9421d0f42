"""Operands folded once, and joined steps as calls of one op each: the same function, by torch's own ops here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings

from tests.compiler.cases import case_of, cases
from tests.tolerances import ORACLE, error
from vitsparse.backends import reference
from vitsparse.compiler import front, logits_plan
from vitsparse.compiler.compiled import Compiled
from vitsparse.compiler.joined_steps import Mlp, QkvAttention
from vitsparse.compiler.run_folded import Folded


@pytest.mark.parametrize("target", ["gpu", "gpu_mlp"])
@settings(max_examples=50)
@given(case=cases(dtype=torch.float64))
def test_folded_operands_keep_the_function(target, case):
    plan = front(case.model.config, case.circuit, case.ablation.stacked(case.circuit.graph), case.state)
    sparse = case.sparse("torch")
    plan = logits_plan(plan, {key: value.detach() for key, value in sparse.named_parameters()}, target)
    folded = Folded(plan, dict(sparse.named_parameters()), case.images)
    with torch.no_grad():
        assert error(folded.run(case.images, reference)[:, 0], case.exact) <= ORACLE


def test_joined_steps_are_one_call_each():
    case = case_of("full")
    compiled = Compiled(case.sparse("torch"), case.sparse("torch")._front)
    calls: list[str] = []

    def counted(name):
        return lambda *operands: (calls.append(name), getattr(reference, name)(*operands))[1]

    ops = SimpleNamespace(**{name: counted(name) for name in ("linear", "sum_norm", "attention", "qkv_attention", "mlp",
                                                              "apply_pattern")})
    compiled.folded("logits", "gpu_mlp").run(case.images, ops)
    steps = compiled.plan("logits", "gpu_mlp").steps
    assert calls.count("mlp") == sum(isinstance(step, Mlp) for step in steps) > 0
    assert calls.count("qkv_attention") == sum(isinstance(step, QkvAttention) for step in steps) > 0
    assert compiled.folded("logits", "gpu_mlp") is compiled.folded("logits", "gpu_mlp")
