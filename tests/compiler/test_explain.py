"""What is explained is what runs, pass by pass, and it can be read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from tests.compiler.cases import Case, case_of, cases
from tests.strategies import make_ablation, make_images, make_model
from tests.tolerances import BACKEND, error
from vitsparse.backends import reference
from vitsparse.circuit import Circuit, Graph
from vitsparse.compiler import BACK_PASSES, front_passes
from vitsparse.compiler.execute import run_plan
from vitsparse.compiler.explain import Explanation, explain
from vitsparse.errors import InputError
from vitsparse.model.config import ViTConfig

LONG = ViTConfig(img_size=8, patch_size=2, in_chans=1, num_classes=5, embed_dim=32, depth=4, num_heads=4)


def explained(case: Case, **options) -> Explanation:
    return explain(case.model, case.circuit, ablation=case.ablation, **options)


def pass_names(case: Case) -> list[str]:
    return [getattr(each, "func", each).__name__ for each in front_passes(case.state)]


@settings(max_examples=40)
@given(cases())
def test_the_last_plan_is_the_one_that_runs(case):
    found, sparse = explained(case), case.sparse()
    assert found.stages[-1].plan.steps == sparse.plan.steps
    assert found.stages[-1].plan.passes == sparse.plan.passes
    assert found.stages[-1].parameters == sum(value.numel() for value in sparse.parameters())
    with torch.no_grad():
        out = run_plan(sparse.plan, case.images, dict(sparse.named_parameters()),
                       found.stages[-1].plan.constants, reference)
    assert error(out[:, 0], case.exact) <= BACKEND


def test_every_pass_has_its_place():
    case = case_of()
    names = [stage.name for stage in explained(case).stages]
    assert names == ["translate", *pass_names(case), "append_head", *(each.__name__ for each in BACK_PASSES)]
    constant = case_of("constant")
    names = [stage.name for stage in explained(constant).stages]
    assert names == ["translate", *pass_names(constant), "append_head", "fold_constants"]


def test_a_circuit_of_operators():
    config = ViTConfig(img_size=8, patch_size=2, in_chans=1, num_classes=5, embed_dim=16, depth=2, num_heads=2)
    model, graph = make_model(config), Graph(2, 2, "operator")
    keep = [not name.startswith("b1.norm1->") for name in graph.edge_names]
    case = Case(model, Circuit(graph, keep), make_ablation(model, graph, "zero"), make_images(config, 2))
    assert explained(case).stages[-1].plan.steps == case.sparse().plan.steps


def test_readers_that_must_not_use_differences_are_the_same():
    case = case_of("dense", graph=Graph(2, 3))
    large = 1e4 * case.images
    assert explained(case, calibration=large).stages[-1].plan.steps == \
        case.sparse(calibration=large).plan.steps


def test_short_plans_are_shown_whole():
    text = str(explained(case_of("full", graph=Graph(2, 3, "block"))))
    for name in ("translate", "drop_dead", "choose_kernels"):
        assert f"\n== {name}: " in text
    shown = text.split("== append_head")[1].splitlines()
    assert sum("embed(images)" in line for line in shown) >= 1
    assert not any(line.startswith(("+", "-")) for line in text.splitlines())


def test_of_long_plans_the_changes_are_shown():
    model, graph = make_model(LONG), Graph(4, 4)
    case = case_of("sparse", config=LONG, graph=graph)
    assert model.config == case.model.config
    found = explained(case)
    text = str(found)
    assert len(text.splitlines()) < 250 < len(found.full().splitlines())
    folded = text.split("== fold_constants")[1].split("\n== ")[0].splitlines()
    assert any(line.startswith("- ") and "ablation." in line for line in folded)
    assert any(line.startswith("+ ") and "offset." in line for line in folded)
    before, after = (stage.plan for stage in found.stages[1:3])
    assert f"steps {len(before.steps)} -> {len(after.steps)}" in folded[1]
    lines = {" ".join(line[11:].split()) for stage in found.stages for line in str(stage.plan).splitlines()[1:]}
    changed = {" ".join(line[13:].split()) for line in text.splitlines() if line.startswith(("+ ", "- "))}
    assert {line for line in changed if not line.endswith("more lines")} <= lines


def test_the_table_has_the_sizes_of_every_plan():
    found = explained(case_of())
    head, *rows = found.table().splitlines()
    assert len({len(line) for line in (head, *rows)}) == 1
    columns = head.replace("of dense", "of_dense").replace("kB ", "kB_").split()
    for stage, row in zip(found.stages, rows, strict=True):
        cells = dict(zip(columns, row.split(), strict=True))
        assert (cells["after"], int(cells["steps"])) == (stage.name, len(stage.plan.steps))
        assert float(cells["kB_moved"].replace(",", "")) == pytest.approx(stage.plan.bytes / 1e3, abs=0.06)
        assert float(cells["MFLOP"]) == pytest.approx(stage.plan.flops / 1e6, abs=6e-4)
    assert found.table() in str(found)
    assert all(str(stage.plan) in found.full() for stage in found.stages)


def test_what_cannot_be_compiled_cannot_be_explained():
    case = case_of(graph=Graph(2, 3))
    with pytest.raises(InputError, match="depth=2, heads=3"):
        explain(case.model, Circuit.full(Graph(3, 3)), ablation=case.ablation)
