"""The predicted latency: of the steps that really run, from a table that survives its file."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.compiler.cases import CONFIG, Case, cases, needs_cpu
from tests.strategies import make_model
from vitsparse.circuit import Circuit, Graph
from vitsparse.compiler import cost_table, front, logits_plan
from vitsparse.compiler.cost import FEATURES, KIND_OF, CostModel, PlanCost, features_of, outline
from vitsparse.compiler.cost_table import measure_cost, nonnegative_least_squares
from vitsparse.compiler.plan import Plan
from vitsparse.compiler.steps import Attention, View
from vitsparse.errors import InputError
from vitsparse.model.config import ViTConfig


def table(**changes: float) -> CostModel:
    """One microsecond for each unit of each size, and a program that costs nothing; or as ``changes`` say."""
    coefficients = {kind: {name: changes.get(name, 1.0) for name in names} for kind, (_, names, _) in FEATURES.items()}
    return CostModel({1: {**coefficients, "program": {"step": changes.get("program", 0.0)}}}, 2, {"cpu": "a test"})


def what_runs(plan: Plan) -> list[tuple]:
    return [(type(step), tuple(step.writes), step.flops, step.bytes) for step in plan.steps]


@settings(max_examples=40)
@given(cases(ablations=("mean",)))
def test_the_outline_has_the_steps_of_the_compiled_plan(case: Case):
    values = torch.randn_like(case.ablation.stacked(case.circuit.graph))  # no two constants equal by chance
    whole = front(case.model.config, case.circuit, values, case.state)
    assert what_runs(outline(case.model.config, case.circuit)) == what_runs(logits_plan(whole, case.state))


def test_what_can_be_shared_is_not_paid_twice_and_what_dies_is_not_paid():
    model = make_model(CONFIG)
    cost = PlanCost(table(program=7.0), model.config)
    graph = Graph.of(model, mlp_groups=2)
    full = Circuit.full(graph)
    assert cost.dense == cost.latency(full) == cost.latency(Circuit.full(Graph.of(model, granularity="layer")))
    headless, other = ([not name.startswith(f"a0.h{head}->") for name in graph.edge_names] for head in (1, 2))
    assert cost.latency(Circuit(graph, headless)) == cost.latency(Circuit(graph, other)) < cost.dense
    assert cost.latency(Circuit(graph, ~full.keep)) == 7.0  # a stored vector: nothing but the call
    assert cost.describe()["dense_us"] == cost.dense


def test_threads_share_a_large_step_unless_they_have_images_of_their_own():
    view = View("x", (0, 65), (0, 256))
    step = Attention(view, view, view, view, heads=8)
    alone, shared = features_of(step, 1, 1), features_of(step, 1, 2)
    assert (alone["shared"], shared["shared"]) == (0, 1)
    assert shared["scores"] == alone["scores"] / 2
    assert features_of(step, 32, 2) == alone
    small = Attention(*[View("x", (0, 1), (0, 32))] * 4, heads=1)
    assert features_of(small, 1, 2)["shared"] == 0
    assert KIND_OF[type(step)] == "attention"


def test_least_squares_without_negative_coefficients():
    """At the minimum the gradient is zero where a coefficient is positive, and not negative elsewhere."""
    rng = np.random.default_rng(0)
    matrix = rng.random((30, 5)) * (1, 1e6, 1e-3, 1, 1)
    matrix[:, 4] = 0
    target = matrix @ (2.0, 1e-6, -300.0, 0.5, 0.0) + 0.3 * rng.random(30)
    found = np.array(nonnegative_least_squares(matrix, target))
    slope = (matrix.T @ (matrix @ found - target)) / np.maximum(np.linalg.norm(matrix, axis=0), 1)
    assert (found[:2] > 0).all()
    assert found[2] == found[4] == 0
    assert slope[2] > 0
    assert np.abs(slope[[0, 1, 3]]).max() < 1e-6
    assert nonnegative_least_squares(matrix[:, :2], matrix[:, :2] @ (2.0, 3e-6)) == pytest.approx([2.0, 3e-6])


@needs_cpu
def test_a_measured_table_predicts_something_and_survives_its_file(tmp_path, monkeypatch):
    for name, value in {"SIDES": (2, 4), "WIDTHS": (32, 64), "PRODUCTS": ((32, 64), (64, 128), (64, 16))}.items():
        monkeypatch.setattr(cost_table, name, value)
    measured = measure_cost((1, 4), seconds=0.0)
    measured.save(tmp_path / "cost.json")
    loaded = CostModel.load(tmp_path / "cost.json")
    assert loaded.batches == measured.batches
    assert loaded.threads == torch.get_num_threads()
    assert loaded.machine["cpu"]
    config = ViTConfig(img_size=16, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=5)
    one, four = (PlanCost(loaded, config, batch=batch).dense for batch in (1, 4))
    assert 1 < one < four < 1e5
    assert "threads" in repr(loaded)


def change(content: dict, path: tuple, value: object) -> None:
    for key in path[:-1]:
        content = content[key]
    if value is None:
        del content[path[-1]]
    else:
        content[path[-1]] = value


@pytest.mark.parametrize(("path", "value", "message"), [
    (("version",), 2, "of this version"),
    (("format",), "vitsparse.circuit", "measure this device"),
    (("machine",), [], "machine, threads"),
    (("threads",), 0, "machine, threads"),
    (("threads",), None, "damaged"),
    (("batches",), {}, "batches"),
    (("batches", "one"), {}, "batches"),
    (("batches", "1", "linear"), None, "kinds"),
    (("batches", "1", "linear", "gelus"), None, "1: linear"),
    (("batches", "1", "linear", "gelus"), -1.0, "linear: gelus"),
    (("batches", "1", "program", "step"), "fast", "program: step"),
    (("batches", "1", "program", "step"), True, "program: step"),
])
def test_a_damaged_file_is_refused_by_field(tmp_path, path, value, message):
    file = tmp_path / "cost.json"
    table().save(file)
    content = json.loads(file.read_text())
    change(content, path, value)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        CostModel.load(file)
    assert str(file) in str(caught.value)


def test_not_a_number_is_refused(tmp_path):
    file = tmp_path / "cost.json"
    table().save(file)
    file.write_text(file.read_text().replace("1.0", "NaN", 1))
    with pytest.raises(InputError, match="not valid JSON"):
        CostModel.load(file)
    file.write_text("[1]")
    with pytest.raises(InputError, match="not a cost model"):
        CostModel.load(file)


def test_a_model_is_no_configuration():
    with pytest.raises(InputError, match=r"model\.config"):
        PlanCost(table(), torch.nn.Identity())


def test_bad_batch_sizes_are_refused():
    with pytest.raises(InputError, match=r"one of \[1\]"):
        PlanCost(table(), CONFIG, batch=3)
    for batches in ((), (0,), (1.5,), (True,), (math.inf,)):
        with pytest.raises(InputError, match="positive integers"):
            measure_cost(batches)
