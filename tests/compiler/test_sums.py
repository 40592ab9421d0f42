"""How sums are made: read once where several want the same, as differences only where no digits cancel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.compiler.cases import Case, cases, edgewise
from tests.compiler.test_passes import after, logits
from tests.strategies import make_ablation, make_images, make_model
from tests.tolerances import ORACLE, error
from vitsparse import InputError
from vitsparse.circuit import Circuit, Graph
from vitsparse.compiler import append_head, back, front, logits_plan, sparsify
from vitsparse.compiler.compile import BACK_PASSES
from vitsparse.compiler.passes.choose_kernels import choose_kernels
from vitsparse.compiler.passes.choose_sums import SumCost, choose_sums
from vitsparse.compiler.plan import Plan
from vitsparse.compiler.steady import calibration_images, unsteady_readers
from vitsparse.compiler.steps import SumNorm, SumNorms
from vitsparse.model.config import ViTConfig
from vitsparse.model.vit import ViT

DEEP = ViTConfig(img_size=16, patch_size=4, num_classes=5, embed_dim=32, depth=6, num_heads=4)
COSTS = (SumCost(), SumCost(fetch=0, store=0, term=1), SumCost(fetch=1, store=0, term=0), SumCost(fetch=5, store=0.1))


def parts(plan: Plan) -> list[SumNorm]:
    return [part for step in plan.steps for part in getattr(step, "parts", (step,)) if isinstance(part, SumNorm)]


def deep_case(share: float, seed: int = 0, granularity: str = "head") -> Case:
    """Every node alive in six layers, ``share`` of the edges kept at random; float64."""
    graph = Graph(DEEP.depth, DEEP.num_heads, granularity)
    model = make_model(DEEP, seed, torch.float64)
    keep = np.random.default_rng(seed).random(graph.num_edges) < share
    return Case(model, Circuit(graph, keep), make_ablation(model, graph, "zero"),
                make_images(DEEP, 2, seed, torch.float64))


@settings(max_examples=30)
@given(cases(dtype=torch.float64))
def test_whatever_memory_costs_the_function_stays(case):
    plan = after(case, "widen_products")
    for cost in COSTS:
        chosen = choose_sums(plan, cost)
        assert error(logits(chosen, case), case.exact) <= ORACLE
        assert error(logits(choose_kernels(chosen), case), case.exact) <= ORACLE


@pytest.mark.parametrize("granularity", ["head", "qkv"])
def test_half_of_the_edges_for_less_than_six_tenths_of_the_bytes(granularity):
    """Twelve layers, all nodes alive: sums are all there is to save. Counted by the plans themselves, against one that
    adds up every reader's own senders."""
    config = ViTConfig(img_size=64, patch_size=8, embed_dim=256, depth=12, num_heads=8)
    graph = Graph(config.depth, config.num_heads, granularity)
    values = torch.zeros(len(graph.senders), config.num_tokens, config.embed_dim)
    state = {key: value.detach() for key, value in ViT(**config.to_dict()).state_dict().items()}
    half = Circuit(graph, np.random.default_rng(0).random(graph.num_edges) < 0.5)
    plans = [append_head(front(config, circuit, values, state)) for circuit in (half, Circuit.full(graph))]
    naive = plans[0]
    for run_pass in BACK_PASSES[: BACK_PASSES.index(choose_sums)]:
        naive = run_pass(naive)
    made, full = map(back, plans)
    assert made.bytes <= 0.6 * naive.bytes
    assert made.flops == naive.flops <= 1.2 * full.flops


def test_a_few_cut_edges_are_taken_away_from_a_trunk():
    plan = after(deep_case(0.9), "choose_sums")
    terms = sum(len(step.senders) + len(step.minus) for step in parts(plan))
    own = sum(len(step.senders) for step in parts(after(deep_case(0.9), "widen_products")))
    assert any(step.minus for step in parts(plan))
    assert any(not step.readers for step in parts(plan)), "no sum that serves others alone"
    assert terms < own / 2


def test_the_whole_model_is_its_residual_stream():
    for step in parts(after(deep_case(1.1), "choose_kernels"))[1:]:
        assert not step.minus
        assert len(step.senders) == 2, "the stream, and what was written since"


def test_a_bundle_reads_each_value_once_and_starts_from_its_own_sums():
    plan = after(deep_case(0.9), "choose_kernels")
    bundles = [step for step in plan.steps if isinstance(step, SumNorms)]
    assert bundles
    for step in bundles:
        assert len(set(step.reads)) == len(step.reads)
        written: set[str] = set()
        for part in step.parts:
            inside = {view.name for view in part.reads} & {view.name for view in step.writes}
            assert inside <= written, "a part starts from one that comes later"
            written |= {view.name for view in part.writes}
    own = sum(sum(part.bytes for part in step.parts) for step in bundles)
    assert sum(step.bytes for step in bundles) < 0.7 * own


def test_steps_of_a_wave_do_not_touch_what_another_writes():
    plan = after(deep_case(0.7), "choose_kernels")
    assert tuple(step for wave in plan.waves for step in wave) == plan.steps
    assert max(map(len, plan.waves)) >= DEEP.num_heads, "heads with inputs of their own run side by side"
    for wave in plan.waves:
        for step in wave:
            others = {view.name for other in wave if other is not step for view in other.writes}
            assert others.isdisjoint(view.name for view in (*step.reads, *step.writes))


def shouting_case() -> Case:
    """The first MLP writes ten million times what others do, and the last readers do not hear it."""
    case = deep_case(0.9, seed=1)
    model = make_model(DEEP, 1, torch.float32)
    with torch.no_grad():
        model.blocks[0].mlp.fc2.weight *= 1e7
    graph = case.circuit.graph
    deaf = {f"m0->a5.h{h}" for h in range(4)} | {"m0->m5", "m0->logits"}
    keep = np.array([name not in deaf for name in map(graph.edge_name, range(graph.num_edges))])
    return Case(model, Circuit(graph, keep), make_ablation(model, graph, "zero"), case.images.float())


def test_a_difference_is_not_taken_where_digits_would_cancel():
    case = shouting_case()
    values = case.ablation.stacked(case.circuit.graph)
    images = calibration_images(case.model, None)
    unsteady = unsteady_readers(case.model, case.circuit, values, images)
    assert unsteady == {"a5.h0", "m5", "logits"} | {f"a5.h{h}" for h in range(4)}

    exact = edgewise(case.model, case)
    guarded = case.sparse("torch")
    for part in parts(guarded.plan):
        assert not part.minus or unsteady.isdisjoint(part.readers)
    with torch.no_grad():
        assert error(guarded(case.images), exact) <= 1e-5

    plan = logits_plan(front(DEEP, case.circuit, values, case.state), case.state)  # nobody warned
    assert any(part.minus and not unsteady.isdisjoint(part.readers) for part in parts(plan))
    assert error(logits(plan, case), exact) > 1e-3


def test_no_cut_edge_no_question():
    case = deep_case(1.1)
    values = case.ablation.stacked(case.circuit.graph)
    assert unsteady_readers(case.model, case.circuit, values, case.images) == frozenset()


def test_the_verdict_survives_the_file(tmp_path):
    sparse = shouting_case().sparse("torch")
    sparse.save_pretrained(tmp_path)
    assert [part.minus for part in parts(type(sparse).from_pretrained(tmp_path).plan)] == \
        [part.minus for part in parts(sparse.plan)]


def test_calibration_images_of_another_shape_are_refused():
    case = deep_case(0.9)
    with pytest.raises(InputError, match="calibration"):
        sparsify(case.model, case.circuit, ablation=case.ablation, calibration=torch.zeros(2, 3, 8, 8))
