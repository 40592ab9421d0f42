"""Every pass keeps the function, alone and after those before it, and establishes what it is for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.compiler.cases import Case, cases
from tests.strategies import make_ablation, make_images, make_model
from tests.tolerances import ORACLE, error
from vitsparse.backends import reference
from vitsparse.circuit import Circuit, Graph
from vitsparse.compiler import append_head, back, dense_flops, front, logits_plan, translate
from vitsparse.compiler.execute import Environment, run_plan, take
from vitsparse.compiler.passes.choose_kernels import choose_kernels
from vitsparse.compiler.passes.choose_sums import choose_sums
from vitsparse.compiler.passes.drop_dead import drop_dead
from vitsparse.compiler.passes.fold_constants import fold_constants
from vitsparse.compiler.passes.group_readers import group_readers
from vitsparse.compiler.passes.narrow_tokens import narrow_tokens
from vitsparse.compiler.passes.slice_weights import slice_weights
from vitsparse.compiler.passes.widen_products import widen_products
from vitsparse.compiler.plan import Plan
from vitsparse.compiler.steps import Attention, Embed, Linear, SumNorm, joint_name, length
from vitsparse.model.config import ViTConfig

MANY = settings(max_examples=80)
PASSES = ("drop_dead", "fold_constants", "slice_weights", "narrow_tokens", "group_readers", "widen_products",
          "choose_sums", "choose_kernels")
TABLE = (drop_dead, fold_constants, slice_weights, narrow_tokens, group_readers, widen_products, choose_sums,
         choose_kernels)


def pass_named(name: str, case: Case) -> Callable[[Plan], Plan]:
    run_pass = TABLE[PASSES.index(name)]
    return (lambda plan: fold_constants(plan, case.state)) if run_pass is fold_constants else run_pass


def naive(case: Case) -> Plan:
    values = case.ablation.stacked(case.circuit.graph).double()
    return append_head(translate(case.model.config, case.circuit, values))


def logits(plan: Plan, case: Case) -> torch.Tensor:
    """The plan by the reference ops, with the dense parameters or their slices."""
    parameters = dict(case.state)
    for key, slices in plan.parameters.items():
        for dim, ranges in enumerate(slices):
            parameters[key] = take(parameters[key], dim, ranges)
    with torch.no_grad():
        return run_plan(plan, case.images, parameters, plan.constants, reference)[:, 0]


def after(case: Case, last: str) -> Plan:
    """The plan after every pass up to ``last``."""
    plan = naive(case)
    for name in PASSES[: PASSES.index(last) + 1]:
        plan = pass_named(name, case)(plan)
    return plan


def sums(plan: Plan) -> list[SumNorm]:
    return [step for step in plan.steps if isinstance(step, SumNorm)]


@MANY
@given(cases(dtype=torch.float64))
def test_each_pass_alone_keeps_the_function(case):
    plan = naive(case)
    assert error(logits(plan, case), case.exact) <= ORACLE
    for name in PASSES:
        alone = pass_named(name, case)(plan)
        assert alone.passes == (name,)
        assert error(logits(alone, case), case.exact) <= ORACLE, name


@MANY
@given(cases(dtype=torch.float64))
def test_each_pass_after_those_before_it_keeps_the_function(case):
    plan = naive(case)
    for name in PASSES:
        plan = pass_named(name, case)(plan)
        assert error(logits(plan, case), case.exact) <= ORACLE, name
    assert plan.passes == PASSES


@MANY
@given(cases(dtype=torch.float64))
def test_the_compiler_as_a_whole(case):
    """From ablation values in float32, which must not be added up in it where the model is in float64."""
    values = case.ablation.stacked(case.circuit.graph)
    assert values.dtype == torch.float32
    plan = front(case.model.config, case.circuit, values, case.state)
    assert error(logits(logits_plan(plan, case.state), case), case.exact) <= ORACLE


@MANY
@given(cases(dtype=torch.float64))
def test_what_each_pass_establishes(case):
    plan = after(case, "drop_dead")
    assert all(any(view.name in plan.names_read for view in step.writes) for step in plan.steps)

    plan = after(case, "fold_constants")
    for step in plan.steps:
        assert isinstance(step, Embed) or not all(view.name in plan.constants for view in step.reads)
        assert not isinstance(step, SumNorm) or not any(view.name in plan.constants for view in step.senders)
        assert not isinstance(step, Attention) or not {step.q.name, step.k.name} <= set(plan.constants)

    plan, grouped = after(case, "narrow_tokens"), after(case, "group_readers")
    for step in plan.steps:  # every row that is computed is read
        for view in step.writes:
            rows = [read.rows for other in plan.steps for read in other.reads if read.name == view.name]
            rows += [plan.output.rows] if plan.output.name == view.name else []
            assert view.rows == (min(start for start, _ in rows), max(stop for _, stop in rows))
    keys = [({v.name for v in step.senders}, step.offset, step.biases, step.total is None) for step in sums(grouped)]
    assert all(key not in keys[:position] for position, key in enumerate(keys))
    assert sorted(name for step in sums(grouped) for name in step.readers) == \
        sorted(name for step in sums(plan) for name in step.readers)

    widened, shared = after(case, "widen_products"), after(case, "choose_sums")
    assert widened.flops == grouped.flops == shared.flops
    assert len(widened.steps) <= len(grouped.steps)
    assert sum(len(step.senders) for step in sums(shared)) <= sum(len(step.senders) for step in sums(widened))
    names = [view.name for step in widened.steps for view in step.writes
             if not (isinstance(step, Linear) and step.accumulate)]
    assert len(names) == len(set(names)), "a value is written twice"


@MANY
@given(cases(dtype=torch.float64))
def test_parameters_have_the_sizes_of_what_is_live(case):
    plan, config = after(case, "slice_weights"), case.model.config
    circuit, dim = case.circuit, config.head_dim
    living = set(circuit.graph.senders) - set(circuit.dead) - set(circuit.constant)
    bounds = np.arange(circuit.graph.mlp_groups + 1) * config.mlp_hidden // circuit.graph.mlp_groups
    for layer in range(config.depth):
        heads = sum(name.startswith(f"a{layer}.") for name in living) + config.num_heads * (f"a{layer}" in living)
        units = sum(bounds[k + 1] - bounds[k] for k in range(circuit.graph.mlp_groups)
                    if living & {f"m{layer}", f"m{layer}.g{k}"})
        proj = plan.parameters.get(f"blocks.{layer}.attn.proj.weight", ((), ()))
        fc2 = plan.parameters.get(f"blocks.{layer}.mlp.fc2.weight", ((), ()))
        assert sum(map(length, proj[1])) == heads * dim
        assert sum(map(length, fc2[1])) == units


def constant_queries(seed: int = 0) -> Case:
    """Every q and k of the first layer sees nothing but its ablation; its v sees the image."""
    config = ViTConfig(img_size=6, patch_size=2, in_chans=1, num_classes=5, embed_dim=16, depth=2, num_heads=2)
    model, graph = make_model(config, seed, torch.float64), Graph(2, 2, "qkv")
    keep = np.array([not name.endswith(("a0.h0<q>", "a0.h0<k>", "a0.h1<q>")) for name in graph.edge_names])
    return Case(model, Circuit(graph, keep), make_ablation(model, graph, "mean"), make_images(config, 2, seed).double())


def test_constant_patterns_and_constant_queries():
    case = constant_queries()
    plan = after(case, "choose_sums")
    kinds = [type(step).__name__ for step in plan.steps]
    assert kinds.count("ApplyPattern") == 1
    assert error(logits(plan, case), case.exact) <= ORACLE
    assert plan.flops < dense_flops(case.model.config)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_the_full_circuit_is_the_dense_model_and_costs_as_much(pool):
    config = ViTConfig(img_size=64, patch_size=8, embed_dim=256, depth=12, num_heads=8, num_classes=200,
                       global_pool=pool)
    graph = Graph(12, 8)
    values = torch.zeros(len(graph.senders), config.num_tokens, config.embed_dim)
    plan = append_head(translate(config, Circuit.full(graph), values))
    assert plan.flops == dense_flops(config) == pytest.approx(1.285e9, rel=0.01)
    final = back(plan)
    kinds = [type(step).__name__ for step in final.steps]
    assert kinds.count("Attention") == 12
    assert kinds.count("SumNorm") == 25 + (pool == "avg")
    assert kinds.count("Linear") == 4 * 12 + 2  # the last queries have fewer rows: a product of their own
    if pool == "token":
        last = [step.out for step in final.steps if isinstance(step, Linear) and "blocks.11.mlp" in step.weight.key]
        assert [view.rows for view in last] == [(0, 1), (0, 1)]
        assert final.flops < plan.flops
    stream = [step for step in sums(final) if step.readers != ("logits",)]
    assert max(len(step.senders) for step in stream) == 2  # the residual stream, and what was written since


def test_a_circuit_of_whole_nodes_has_one_product_per_kind_and_layer():
    graph = Graph(3, 4, mlp_groups=4)
    gone = {"a0.h1", "a1.h0", "a1.h3", "m0.g2", "m2.g0", "m2.g1"}
    keep = np.array([name.split("->")[0] not in gone for name in graph.edge_names])
    config = ViTConfig(img_size=8, patch_size=2, in_chans=1, num_classes=5, embed_dim=32, depth=3, num_heads=4)
    model = make_model(config, dtype=torch.float64)
    case = Case(model, Circuit(graph, keep), make_ablation(model, graph, "zero"), make_images(config, 2).double())
    plan = after(case, "choose_sums")
    products: dict[tuple, int] = {}
    for step in plan.steps:
        if isinstance(step, Linear):
            products[step.weight.key, step.out.rows] = products.get((step.weight.key, step.out.rows), 0) + 1
    assert set(products.values()) == {1}
    names = {view.name for step in plan.steps for view in step.writes}
    assert {"qkv.a0.h0,2-3", "z.a1.h1-2", "s.a0.h0,2-3", "h.m0.g0-1,3", "s.m2.g2-3"} <= names
    assert error(logits(plan, case), case.exact) <= ORACLE


def test_joint_names():
    assert joint_name(["z.a1.h3"]) == "z.a1.h3"
    assert joint_name(["s.m0.g10", "s.m0.g2", "s.m0.g1", "s.m0.g9"]) == "s.m0.g1-2,9-10"


def test_a_printed_plan_says_what_it_costs():
    case = constant_queries()
    plan = after(case, "choose_sums")
    head, *lines, last = str(plan).splitlines()
    assert len(lines) == len(plan.steps)
    assert [int(line.split()[0]) for line in lines] == list(range(len(lines)))
    assert [line.split()[1] for line in lines] == [f"w{n}" for n, wave in enumerate(plan.waves) for _ in wave]
    for unit, total in (("MFLOP", plan.flops / 1e6), ("kB", plan.bytes / 1e3)):
        column = [float(line.split(f" {unit}")[0].split()[-1]) for line in lines]
        assert sum(column) == pytest.approx(total, abs=0.06 * len(lines) if unit == "kB" else 6e-4 * len(lines))
    assert f"{plan.flops / 1e6:.3f} MFLOP" in head
    assert f"{plan.bytes / 1e3:.1f} kB" in head
    assert head.endswith(", ".join(PASSES[:-1]))
    assert plan.output.name in last
    assert "ApplyPattern" not in str(plan)
    assert "pattern.z.a0.h0" in str(plan)


def test_values_are_read_by_absolute_rows():
    """A value that holds rows 1..3 alone answers for those rows."""
    case = constant_queries()
    plan = after(case, "choose_sums")
    environment = Environment(plan, case.state, plan.constants)
    view = plan.steps[0].writes[0]
    stored = torch.randn(2, 2, view.width, dtype=torch.float64)
    environment.write(type(view)(view.name, (1, 3), view.cols), stored)
    assert torch.equal(environment.read(type(view)(view.name, (2, 3), (4, 8))), stored[:, 1:2, 4:8])
