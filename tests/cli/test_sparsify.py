"""``vitsparse sparsify``: what it writes, and what ``--explain`` prints."""

from __future__ import annotations

import re

import pytest
import torch

from tests.compiler.cases import BACKENDS, case_of
from tests.tolerances import BACKEND, error
from vitsparse.circuit import Circuit
from vitsparse.cli import main
from vitsparse.compiler import BACK_PASSES, SparseViT, front_passes
from vitsparse.model.weights import save_pretrained


@pytest.fixture(params=["sparse", "constant"])
def case(request, tmp_path):
    """A case whose dense model, circuit and ablation lie in ``tmp_path``."""
    case = case_of(request.param)
    save_pretrained(case.model, tmp_path / "dense")
    Circuit(case.circuit.graph, case.circuit.keep, ablation=case.ablation.describe()).save(tmp_path / "circuit.json")
    case.ablation.save(tmp_path / "ablation.safetensors")
    return case


@pytest.mark.parametrize("backend", BACKENDS)
def test_explain_prints_every_pass_and_changes_nothing(case, backend, tmp_path, capsys):
    arguments = ["sparsify", str(tmp_path / "dense"), str(tmp_path / "circuit.json"), "--sparsify.backend", backend,
                 "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "plain")]) == 0
    plain = capsys.readouterr().out
    assert main([*arguments, "--out", str(tmp_path / "out"), "--explain"]) == 0
    page = capsys.readouterr().out
    assert "==" not in plain
    back = [each.__name__ for each in BACK_PASSES] if case.sparse().plan.steps else ["fold_constants"]
    front = [getattr(each, "func", each).__name__ for each in front_passes(case.state)]
    assert re.findall(r"^== (\w+): ", page, re.MULTILINE) == ["translate", *front, "append_head", *back]

    sparse = SparseViT.from_pretrained(tmp_path / "out")
    assert str(sparse.plan) in page
    assert page.endswith(plain.replace(str(tmp_path / "plain"), str(tmp_path / "out")))
    assert (tmp_path / "out" / "plan.txt").read_text() == (tmp_path / "plain" / "plan.txt").read_text()
    assert str(sparse.plan) in (tmp_path / "out" / "explain.txt").read_text()
    assert not (tmp_path / "plain" / "explain.txt").exists()
    with torch.no_grad():
        assert error(sparse(case.images), case.exact) <= BACKEND
