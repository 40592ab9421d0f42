"""The predicted latency: of the steps that really run, from a table that survives its file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.compiler.cases import CONFIG, Case, cases, needs_cpu
from tests.strategies import make_model
from vitsparse.circuit import Circuit, Graph
from vitsparse.circuit.liveness import depends_on_input, reaches_logits
from vitsparse.compiler import cost_table, dense_flops, front, logits_plan
from vitsparse.compiler.cost import CostModel, PlanCost, default_file
from vitsparse.compiler.cost_check import check_predictions, median_errors
from vitsparse.compiler.cost_features import (
    FEATURES,
    WORTH_A_CHUNK,
    Caches,
    features_of,
    features_of_call,
    images_together,
    shares,
    worth_sharing,
)
from vitsparse.compiler.cost_fit import fit, nonnegative_least_squares
from vitsparse.compiler.cost_samples import LARGEST, samples
from vitsparse.compiler.cost_table import measure_cost, program_of, wave_microseconds
from vitsparse.compiler.outline import outline
from vitsparse.compiler.plan import Plan
from vitsparse.compiler.steps import Attention, Embed, Linear, SumNorm, View, Weight
from vitsparse.errors import InputError
from vitsparse.model.config import ViTConfig

CACHES = Caches(near=1 << 20, far=1 << 25)
WIDE = ViTConfig(img_size=64, patch_size=8, embed_dim=256, depth=2, num_heads=8, num_classes=10)


def table(**changes: float) -> CostModel:
    """One microsecond for each unit of each size, and a call that costs nothing; or as ``changes`` say."""
    prices = {kind: dict.fromkeys(sizes, 1.0) for kind, sizes in FEATURES.items()}
    prices["program"] = {"call": changes.get("call", 0.0), "threads": 0.0, "tensors": 0.0}
    return CostModel(prices, 2, CACHES, {"cpu": "a test"})


def what_runs(plan: Plan) -> list[tuple]:
    return [(type(step), tuple(step.writes), step.flops, step.bytes) for step in plan.steps]


def whole(plan: Plan, batch: int, threads: int = 1, caches: Caches = CACHES) -> dict[tuple[str, str], float]:
    """The features of all waves together."""
    total: dict[tuple[str, str], float] = {}
    for wave in features_of(plan, batch, threads, caches):
        for name, count in wave.items():
            total[name] = total.get(name, 0.0) + count
    return total


@settings(max_examples=40)
@given(cases(ablations=("mean",)))
def test_the_outline_has_the_steps_of_the_compiled_plan(case: Case):
    values = torch.randn_like(case.ablation.stacked(case.circuit.graph))  # no two constants equal by chance
    whole = front(case.model.config, case.circuit, values, case.state)
    assert what_runs(outline(case.model.config, case.circuit)) == what_runs(logits_plan(whole, case.state))


def test_what_can_be_shared_is_not_paid_twice_and_what_dies_is_not_paid():
    model = make_model(CONFIG)
    cost = PlanCost(table(call=7.0), model.config)
    graph = Graph.of(model, mlp_groups=2)
    full = Circuit.full(graph)
    assert cost.dense == cost.latency(full) == cost.latency(Circuit.full(Graph.of(model, granularity="layer")))
    headless, other = ([not name.startswith(f"a0.h{head}->") for name in graph.edge_names] for head in (1, 2))
    assert cost.latency(Circuit(graph, headless)) == cost.latency(Circuit(graph, other)) < cost.dense
    assert cost.latency(Circuit(graph, ~full.keep)) == 7.0  # a stored vector: nothing but the call
    assert cost.describe()["dense_us"] == cost.dense


def test_every_multiplication_and_every_weight_is_counted_once_an_image():
    plan = outline(WIDE, Circuit.full(Graph.of(make_model(WIDE))))
    found = whole(plan, 5)
    # The classifier's 10 columns are computed as 16.
    padding = 6 * WIDE.embed_dim
    assert found["linear", "products"] + found["attention", "products"] == 5 * (plan.flops / 2 + padding)
    weights = sum(step.source.width * step.out.width for step in plan.steps if isinstance(step, Linear))
    assert found["linear", "far"] == 5 * (weights + 3 * 64 * WIDE.embed_dim + padding)
    assert found["step", "step"] == 5 * len(plan.steps)
    assert found["wave", "wave"] == 5 * len(plan.waves)


def test_threads_share_the_waves_of_one_image_and_have_images_of_their_own_otherwise():
    plan = outline(WIDE, Circuit.full(Graph.of(make_model(WIDE))))
    assert images_together(plan) == 1
    alone, shared, split = (whole(plan, *setting) for setting in ((1, 1), (1, 2), (32, 2)))
    assert alone["wave", "shared"] == split["wave", "shared"] == alone["wave", "moved"] == 0
    assert shared["wave", "shared"] == len(plan.waves)
    assert shared["linear", "products"] == pytest.approx(alone["linear", "products"] / 2, rel=0.01)
    # Each reads the weights for its own rows; but of the last layer, which has one row, its part of them.
    assert shared["linear", "far"] > 0.75 * alone["linear", "far"]
    keys_and_values = sum(step.k.size + step.v.size for step in plan.steps if isinstance(step, Attention))
    assert shared["wave", "moved"] < keys_and_values
    assert split["linear", "products"] == 16 * alone["linear", "products"]
    assert [(share.images, share.times, share.threads) for share in shares(plan, 5, 2)] == [(1, 4 // 2, 1), (1, 1, 2)]
    assert [features_of_call(plan, batch, 2)["program", "threads"] for batch in (1, 2)] == [1, 1]
    assert features_of_call(plan, 32, 1)["program", "threads"] == 0


def test_a_small_program_and_a_small_step_of_few_rows_stay_on_one_thread():
    rows, cols = (0, 65), (0, 256)
    wide = Attention(*[View("x", rows, cols)] * 3, View("z", rows, cols), heads=8)
    token = replace(wide.out, rows=(0, 1))
    steps = [Linear(token, View("y", (0, 1), (0, width)), Weight("w", ((0, width),), (cols,))) for width in (64, 1024)]
    counts = {}
    for step in steps:
        plan = Plan(WIDE, (Embed(wide.q, 192), wide, step), {}, step.out)
        alone, shared = (features_of(plan, 1, threads, CACHES)[2]["linear", "products"] for threads in (1, 2))
        counts[step.flops < WORTH_A_CHUNK] = shared / alone
    assert counts == {True: 1, False: 0.5}
    narrow = View("x", rows, (0, 32))
    small = Plan(WIDE, (Embed(narrow, 192),), {}, narrow)
    assert not worth_sharing(small, 1, 2)
    assert features_of(small, 1, 2, CACHES) == features_of(small, 1, 1, CACHES)
    assert features_of_call(small, 1, 2)["program", "threads"] == 0


def test_a_sum_reads_from_where_its_senders_were_left():
    """What was written just before is near; what a cache of other data has passed since the last use is not."""
    rows, cols = (0, 65), (0, 256)
    first, late, weight = View("s.input", rows, cols), View("late", rows, cols), Weight("w", ((0, 256),), ((0, 256),))
    steps = (Embed(first, 192), Linear(first, late, weight), SumNorm((), (first, late), normed=View("n", rows, cols)))
    plan = Plan(WIDE, steps, {}, steps[-1].writes[0])
    between = 4 * late.size  # since the product read the first
    sizes = {(near, far): whole(plan, 1, caches=Caches(near, far)) for near, far in
             ((between + 1, 1 << 25), (between - 1, 1 << 25), (between - 1, between - 1))}
    for found, expected in zip(sizes.values(), ((2, 0, 0), (1, 1, 0), (1, 0, 1)), strict=True):
        assert [found.get(("sum", place), 0) / late.size for place in ("near", "far", "memory")] == list(expected)


def test_least_squares_without_negative_coefficients():
    """At the minimum the gradient is zero where a coefficient is positive, and not negative elsewhere."""
    rng = np.random.default_rng(0)
    matrix = rng.random((30, 5)) * (1, 1e6, 1e-3, 1, 1)
    matrix[:, 4] = 0
    target = matrix @ (2.0, 1e-6, -300.0, 0.5, 0.0) + 0.3 * rng.random(30)
    found = nonnegative_least_squares(matrix, target)
    slope = (matrix.T @ (matrix @ found - target)) / np.maximum(np.linalg.norm(matrix, axis=0), 1)
    assert (found[:2] > 0).all()
    assert found[2] == found[4] == 0
    assert slope[2] > 0
    assert np.abs(slope[[0, 1, 3]]).max() < 1e-6
    assert nonnegative_least_squares(matrix[:, :2], matrix[:, :2] @ (2.0, 3e-6)) == pytest.approx([2.0, 3e-6])


def test_prices_are_found_again_whatever_interrupted_a_few_waves():
    rng = np.random.default_rng(0)
    prices = {("linear", "products"): 2e-5, ("sum", "terms"): 3e-4, ("step", "step"): 0.5}
    timings = []
    for _ in range(40):
        waves = [{("linear", "products"): rng.uniform(1e5, 1e7), ("step", "step"): 1.0, ("sum", "terms"): 0.0},
                 {("linear", "products"): 0.0, ("step", "step"): 2.0, ("sum", "terms"): rng.uniform(1e3, 1e6)}]
        times = np.array([sum(prices[name] * count for name, count in wave.items()) for wave in waves])
        times[0] *= 5 if rng.random() < 0.1 else 1
        timings.append((waves, times))
    found = fit(timings)
    assert found.prices == {name: pytest.approx(price, rel=0.03) for name, price in prices.items()}
    assert found.error > 0.05


def test_samples_are_many_kinds_of_circuits_that_depend_on_the_image_and_come_again():
    found, again = ([sample for sample, _ in zip(samples(3), range(40), strict=False)] for _ in range(2))
    assert found == again
    assert len({sample.kind for sample in found}) == 5
    assert {sample.circuit.graph.granularity for sample in found} == {"head", "qkv", "layer"}
    for sample in found:
        graph, keep = sample.circuit.graph, sample.circuit.keep
        assert (depends_on_input(graph, keep) & reaches_logits(graph, keep))[1:].any()
        assert dense_flops(sample.config) <= LARGEST
    assert next(samples(3, WIDE)).config == WIDE


@pytest.fixture
def small(monkeypatch):
    """Models that are measured in no time."""
    sizes = {"WIDTHS": (64,), "DEPTHS": (1, 2), "SIDES": (2, 4), "HEAD_WIDTHS": (32,), "PATCHES": (4,)}
    for name, value in sizes.items():
        monkeypatch.setattr(f"vitsparse.compiler.cost_samples.{name}", value)
    monkeypatch.setattr(cost_table, "LEAST_REPEATS", 2)
    monkeypatch.setattr("vitsparse.compiler.cost_check.REFERENCE", CONFIG)


@needs_cpu
@settings(max_examples=15, deadline=None)
@given(cases(ablations=("mean",), kinds=("full", "sparse", "dead parts")))
def test_every_outline_runs_with_random_numbers_and_each_of_its_waves_is_timed(case: Case):
    plan = outline(case.model.config, case.circuit)
    times = wave_microseconds(plan, program_of(plan), 2, 0.0)
    assert len(times) == len(plan.waves)
    assert (times >= 0).all()
    assert times.sum() > 0


@needs_cpu
def test_a_measured_table_predicts_something_and_survives_its_file(tmp_path, small):
    measured = measure_cost(circuits=6, seconds=0.0, progress=False)
    measured.save(tmp_path / "cost.json")
    loaded = CostModel.load(tmp_path / "cost.json")
    assert (loaded.prices, loaded.caches) == (measured.prices, measured.caches)
    assert loaded.threads == torch.get_num_threads()
    assert loaded.machine["cpu"]
    config = ViTConfig(img_size=16, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=5)
    one, many = (PlanCost(loaded, config, batch=batch).dense for batch in (1, 256))
    assert 1 < one < many < 1e6
    assert "threads" in repr(loaded)


@needs_cpu
def test_predictions_are_compared_with_models_that_run(small):
    rows = list(check_predictions(CostModel(table().prices, torch.get_num_threads(), CACHES, {}), 2, batches=(1, 3),
                                  min_seconds=0.0))
    assert [row["batch"] for row in rows] == [1, 3, 1, 3]
    assert all(row["measured_us"] > 0 and row["predicted_us"] > 0 for row in rows)
    assert len({row["circuit"] for row in rows}) == 2
    assert [row["circuit"].startswith("17x24, 2 layers of 3 heads") for row in rows] == [False, False, True, True]
    with pytest.raises(InputError, match="another number of threads"):
        next(check_predictions(CostModel(table().prices, torch.get_num_threads() + 1, CACHES, {}), 1))


def test_errors_are_relative_to_what_was_measured():
    rows = [{"batch": batch, "measured_us": 100.0, "predicted_us": predicted}
            for batch, predicted in ((1, 110.0), (1, 95.0), (1, 400.0), (32, 50.0))]
    assert median_errors(rows) == {1: pytest.approx(0.1), 32: pytest.approx(0.5)}


def test_a_table_is_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_file(1) == tmp_path / "vitsparse" / "cost-1-thread.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_file(2) == tmp_path / ".cache" / "vitsparse" / "cost-2-threads.json"


def change(content: dict, path: tuple, value: object) -> None:
    for key in path[:-1]:
        content = content[key]
    if value is None:
        del content[path[-1]]
    else:
        content[path[-1]] = value


@pytest.mark.parametrize(("path", "value", "message"), [
    (("version",), 1, "of this version"),
    (("format",), "vitsparse.circuit", "--calibrate"),
    (("machine",), [], "machine, threads"),
    (("threads",), 0, "machine, threads"),
    (("threads",), None, "damaged"),
    (("caches",), {"near": 1}, "caches"),
    (("caches", "far"), 0.5, "caches"),
    (("microseconds",), [], "microseconds"),
    (("microseconds", "linear"), None, "microseconds"),
    (("microseconds", "linear", "gelus"), None, "microseconds: linear"),
    (("microseconds", "linear", "gelus"), -1.0, "linear: gelus"),
    (("microseconds", "program", "call"), "fast", "program: call"),
    (("microseconds", "program", "call"), True, "program: call"),
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


@pytest.mark.parametrize("batch", [0, -1, 1.5, True])
def test_bad_batch_sizes_are_refused(batch):
    with pytest.raises(InputError, match="an integer >= 1"):
        PlanCost(table(), CONFIG, batch=batch)


def test_nothing_to_measure_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        measure_cost(circuits=0)
