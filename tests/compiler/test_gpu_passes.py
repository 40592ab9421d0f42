"""The passes for GPUs keep the function, and join what can be joined."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.compiler.cases import case_of, cases
from tests.compiler.test_passes import after, logits, naive
from tests.strategies import make_model
from tests.tolerances import ORACLE, error
from vitsparse import Ablation, Circuit, Graph
from vitsparse.compiler import back, front, logits_plan
from vitsparse.compiler.compile import GPU_PASSES, TARGETS
from vitsparse.compiler.joined_steps import Mlp, NormLinear, QkvAttention
from vitsparse.compiler.passes.fuse_blocks import MOST_GATHERED, fuse_attention, fuse_mlps, fuse_norms
from vitsparse.compiler.passes.join_products import join_products
from vitsparse.compiler.steps import Attention, Linear, SumNorm, SumNorms, joint_name
from vitsparse.model.config import ViTConfig

PASSES = (join_products, fuse_attention, fuse_mlps, fuse_norms)
CONFIG = ViTConfig(img_size=8, patch_size=2, num_classes=5, embed_dim=24, depth=3, num_heads=3)


@settings(max_examples=60)
@given(cases(dtype=torch.float64))
def test_each_pass_keeps_the_function(case):
    plan = naive(case)
    for run_pass in PASSES:
        assert error(logits(run_pass(plan), case), case.exact) <= ORACLE, run_pass.__name__
    plan = after(case, "choose_kernels")
    for run_pass in PASSES:
        plan = run_pass(plan)
        assert error(logits(plan, case), case.exact) <= ORACLE, run_pass.__name__


@pytest.mark.parametrize("target", ["gpu", "gpu_mlp", "gpu_norm", "gpu_apart"])
@settings(max_examples=40)
@given(case=cases(dtype=torch.float64))
def test_the_compiler_as_a_whole(target, case):
    plan = front(case.model.config, case.circuit, case.ablation.stacked(case.circuit.graph), case.state)
    plan = logits_plan(plan, case.state, target)
    assert error(logits(plan, case), case.exact) <= ORACLE
    sums = [part for step in plan.steps if isinstance(step, SumNorm | SumNorms)
            for part in (step.parts if isinstance(step, SumNorms) else (step,))]
    assert not any(part.minus for part in sums)


def test_a_dense_layer_is_three_kernels():
    """Sum and norm; attention; its output product; the MLP, sum and norm included: no q, k, v, no hidden units."""
    case = case_of("full", config=CONFIG, graph=Graph(3, 3))
    plan = front(case.model.config, case.circuit, case.ablation.stacked(case.circuit.graph), case.state)
    plan = back(plan, "gpu_mlp")
    kinds = [type(step).__name__ for step in plan.steps]
    assert kinds == ["Embed", *["SumNorm", "QkvAttention", "Linear", "Mlp"] * 3, "SumNorm"]
    assert {name.split(".")[0] for name in plan.values} == {"s", "n", "r", "z"}


def test_heads_with_inputs_of_their_own_share_an_output_product():
    """Every reader takes the heads of layer 1 together, but these read different sums."""
    graph = Graph(3, 3)
    keep = np.ones(graph.num_edges, dtype=bool)
    keep[graph.edge_index("a0.h0->a1.h1")] = keep[graph.edge_index("a0.h1->a1.h2")] = False
    model = make_model(CONFIG, 1, torch.float64)
    circuit, ablation = Circuit(graph, keep), Ablation.zero(model, graph)
    state = {key: value.detach() for key, value in model.state_dict().items()}
    plan = front(CONFIG, circuit, ablation.stacked(graph), state)
    apart, joined = back(plan), back(plan, "gpu")
    assert sum(isinstance(step, Linear) and step.accumulate for step in apart.steps) == 2
    assert not any(isinstance(step, Linear) and step.accumulate for step in joined.steps)
    written = [step.attention.out for step in joined.steps if isinstance(step, QkvAttention)]
    assert [view.cols for view in written if view.name == "z.a1.h0-2"] == [(0, 8), (8, 16), (16, 24)]


def test_what_others_read_stays():
    """Hidden units that several products read are stored; so is an input that both an MLP and attention heads read."""
    case = case_of("full", config=CONFIG, graph=Graph(3, 3, mlp_groups=2))
    plan = after(case, "group_readers")  # groups still have products of their own
    assert not any(isinstance(step, Mlp) for step in fuse_mlps(plan).steps)
    assert all(isinstance(step.attention, Attention) for step in fuse_attention(plan).steps
               if isinstance(step, QkvAttention))


def test_norms_are_made_by_their_only_reader():
    case = case_of("full", config=CONFIG, graph=Graph(3, 3))
    plan = front(case.model.config, case.circuit, case.ablation.stacked(case.circuit.graph), case.state)
    kinds = [type(step).__name__ for step in back(plan, "gpu_norm").steps]
    assert kinds == ["Embed", *["SumNorm", "QkvAttention", "Linear", "NormLinear", "Linear"] * 3, "SumNorm"]
    plan = back(plan, "gpu_apart")
    kinds = [type(step).__name__ for step in plan.steps]
    assert kinds == ["Embed", *["NormLinear", "Attention", "Linear", "NormLinear", "Linear"] * 3, "SumNorm"]
    assert not any(name.startswith("n.m") for name in plan.values)
    joined = [step for step in plan.steps if isinstance(step, NormLinear)]
    assert all(step.input.total in step.writes for step in joined[1:])  # which others start from
    crowded = after(case_of("full", config=ViTConfig(img_size=8, patch_size=2, num_classes=5, embed_dim=24, depth=4,
                                                     num_heads=3), graph=Graph(4, 3)), "narrow_tokens")
    for step in fuse_norms(crowded).steps:  # no sums are shared yet: late readers add up many senders
        assert not isinstance(step, NormLinear) or len(step.input.reads) <= MOST_GATHERED


def test_plans_print():
    case = case_of("full", config=CONFIG, graph=Graph(3, 3))
    plan = front(case.model.config, case.circuit, case.ablation.stacked(case.circuit.graph), case.state)
    text = str(back(plan, "gpu_mlp"))
    assert "= qkv_attention" in text
    assert "= mlp" in text
    assert "attention(qkv.a0.h0-2; 3 heads)" in text
    assert back(plan, "gpu_mlp").flops == back(plan, "gpu").flops == back(plan).flops


def test_names_of_what_was_joined_twice():
    assert joint_name(["z.a3.h1,4-5", "z.a3.h0"]) == "z.a3.h0-1,4-5"


def test_targets_begin_alike():
    assert all(passes[:len(GPU_PASSES)] == GPU_PASSES for name, passes in TARGETS.items() if name != "cpu")
