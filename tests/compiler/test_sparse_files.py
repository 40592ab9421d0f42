"""A saved SparseViT comes back bit by bit; a damaged one is refused with the name of the file and the field."""

from __future__ import annotations

import json
import os
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.compiler.cases import BACKENDS, CONFIG, case_of, cases
from tests.strategies import make_model
from tests.tolerances import error
from vitsparse.circuit import Circuit
from vitsparse.circuit.files import sha256_of
from vitsparse.compiler import SparseViT
from vitsparse.errors import InputError, MissingFile
from vitsparse.model.config import ViTConfig
from vitsparse.model.weights import load_pretrained, save_pretrained


@settings(max_examples=25)
@given(cases())
def test_round_trip(tmp_path_factory, case):
    folder = tmp_path_factory.mktemp("saved")
    for backend in BACKENDS:
        sparse = case.sparse(backend)
        sparse.save_pretrained(folder)
        again = SparseViT.from_pretrained(folder)
        assert again.backend == backend
        assert not again.training
        assert again.circuit == case.circuit
        assert str(again.plan) == str(sparse.plan)
        assert again.state_dict().keys() == sparse.state_dict().keys()
        assert [name for name, _ in again.named_parameters()] == [name for name, _ in sparse.named_parameters()]
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in sparse.state_dict().items())
        with torch.no_grad():
            for name in ("__call__", "forward_features"):
                out, expected = getattr(again, name)(case.images), getattr(sparse, name)(case.images)
                # torch's own products may depend on where in memory their operands lie
                assert torch.equal(out, expected) if backend == "cpu" else error(out, expected) <= 1e-6
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "circuit.json"}


def test_another_backend_on_loading(saved):
    assert SparseViT.from_pretrained(saved, backend="reference").backend == "reference"
    with pytest.raises(InputError, match="cuda"):
        SparseViT.from_pretrained(saved, backend="cuda")
    on_meta = SparseViT.from_pretrained(saved, backend="torch", device="meta")
    assert {value.device.type for value in on_meta.state_dict().values()} == {"meta"}
    with pytest.raises(InputError, match=r"did you mean 'torch'"):
        SparseViT.from_pretrained(saved, backend="torhc")


@pytest.fixture
def saved(tmp_path):
    """A folder with constants, a constant pattern's parameters, sliced heads and MLP groups in it."""
    case_of("sparse").sparse("torch").save_pretrained(tmp_path)
    return tmp_path


def edit(folder, change) -> None:
    """Rewrite config.json by ``change(config)``."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def step_of(config, kind: str) -> dict:
    return next(step for step in config["plan"]["steps"] if step["kind"] == kind)


def put(kind: str, *path_and_value):
    """A change that sets one field of the first step of ``kind``."""
    *path, last, value = path_and_value

    def change(config):
        target = step_of(config, kind)
        for name in path:
            target = target[name]
        target[last] = value

    return change


BAD_CONFIGS = {
    "format": (lambda c: c.update(format="other"), "not a saved SparseViT"),
    "version": (lambda c: c.update(version=2), "not a saved SparseViT"),
    "no plan": (lambda c: c.pop("plan"), "config.json: plan"),
    "backend": (lambda c: c.update(backend=3), "config.json: backend"),
    "unknown backend": (lambda c: c.update(backend="tensorrt"), "no backend has this name"),
    "no digests": (lambda c: c.pop("sha256"), "config.json: sha256"),
    "plan version": (lambda c: c["plan"].update(version=9), "not a plan of this version"),
    "plan is a list": (lambda c: c.update(plan=[]), "config.json: plan"),
    "no steps": (lambda c: c["plan"].pop("steps"), "the plan is damaged"),
    "steps": (lambda c: c["plan"].update(steps=[1, 2]), "the plan is damaged"),
    "empty": (lambda c: c["plan"].update(steps=[]), "the output is never written"),
    "kind": (put("Linear", "kind", "Conv"), "the plan is damaged"),
    "field": (put("Linear", "dilation", 2), "the plan is damaged"),
    "constants": (lambda c: c["plan"].update(constants=["x"]), "constants are not the ones"),
    "depth": (lambda c: c["plan"]["config"].update(depth=7), "another shape than the circuit"),
    "huge depth": (lambda c: c["plan"]["config"].update(depth=10**12), "another shape than the circuit"),
    "heads": (lambda c: c["plan"]["config"].update(num_heads=4), "another shape than the circuit"),
    "width": (lambda c: c["plan"]["config"].update(embed_dim=48), "heads does not fit"),
    "huge image": (lambda c: c["plan"]["config"].update(img_size=10**9), "must write a new value, whole"),
    "classes": (lambda c: c["plan"]["config"].update(num_classes=6), "cannot be run"),
    "unknown value": (put("Linear", "source", "name", "n.nothing"), r"plan.steps\[\d+\]"),
    "rows outside": (put("Linear", "source", "rows", [0, 18]), r"plan.steps\[\d+\]"),
    "no rows": (put("Linear", "source", "rows", [3, 3]), r"plan.steps\[\d+\]"),
    "negative columns": (put("Attention", "q", "cols", [-8, 0]), r"plan.steps\[\d+\]"),
    "text for rows": (put("Linear", "out", "rows", ["a", "b"]), r"plan.steps\[\d+\]"),
    "some rows": (put("Linear", "out", "rows", [0, 5]), r"plan.steps\[\d+\]"),
    "written twice": (put("SumNorm", "normed", "name", "s.input"), r"plan.steps\[\d+\]"),
    "view is null": (put("Linear", "source", None), "config.json"),
    "weight is null": (put("Linear", "weight", None), "config.json"),
    "weight ranges": (put("Linear", "weight", "rows", [[0, 10**6]]), "cannot be run"),
    "negative ranges": (put("Linear", "weight", "rows", [[-4, 4]]), r"plan.steps\[\d+\]"),
    "ranges of text": (put("Linear", "weight", "rows", [["0", "8"]]), r"plan.steps\[\d+\]"),
    "weight key": (put("Linear", "weight", "key", "blocks.0.nothing"), "cannot be run"),
    "norm": (put("Linear", "norm", "norm9"), "cannot be run"),
    "activation": (put("Linear", "activation", "swish"), r"plan.steps\[\d+\]"),
    "accumulate": (put("Linear", "accumulate", True), r"plan.steps\[\d+\]"),
    "zero heads": (put("Attention", "heads", 0), "heads does not fit"),
    "many heads": (put("Attention", "heads", 5), "heads does not fit"),
    "bias layers": (put("SumNorm", "biases", [2]), "layer that is not there"),
    "bias of a layer far away": (put("SumNorm", "biases", [10**12]), "layer that is not there"),
    "offset": (put("SumNorm", "offset", "offset.nothing"), "cannot be run"),
    "readers": (put("SumNorm", "readers", []), r"plan.steps\[\d+\]"),
    "slices": (lambda c: c["plan"]["parameters"].update({"head.weight": [[[0, 5]], [[0, 99]]]}), "head.weight"),
    "slices backward": (lambda c: c["plan"]["parameters"].update({"head.weight": [[[3, 5], [0, 3]], [[0, 24]]]}),
                        "head.weight"),
    "slices of nothing": (lambda c: c["plan"]["parameters"].update({"head.weight": [[], []]}), "head.weight"),
    "unknown parameter": (lambda c: c["plan"]["parameters"].update({"x.weight": []}), "weights are not those"),
    "parameter missing": (lambda c: c["plan"]["parameters"].pop("cls_token"), "weights are not those"),
    "output": (lambda c: c["plan"]["output"].update(name="nothing"), "plan.output"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_damaged_configurations(saved, name):
    change, message = BAD_CONFIGS[name]
    edit(saved, change)
    with pytest.raises(InputError, match=message) as refusal:
        SparseViT.from_pretrained(saved)
    assert name == "unknown backend" or str(saved) in str(refusal.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "circuit.json"])
def test_missing_and_truncated_files(saved, file):
    path = saved / file
    whole = path.read_bytes()
    for cut in (whole[: len(whole) // 2], whole[:3], b"", b"\xff" * 40, whole + b"x"):
        path.write_bytes(cut)
        with pytest.raises(InputError) as refusal:
            SparseViT.from_pretrained(saved)
        assert file in str(refusal.value)
    path.unlink()
    with pytest.raises(MissingFile) as refusal:
        SparseViT.from_pretrained(saved)
    assert file in str(refusal.value)


BAD_TENSORS = {
    "NaN": lambda t: t["head.weight"].fill_(float("nan")), "infinite": lambda t: t["head.weight"].fill_(float("inf")),
    "shape": lambda t: t.update({"head.weight": torch.zeros(5, 25)}),
    "unsliced shape": lambda t: t.update({"pos_embed": torch.zeros(1, 18, 24)}),
    "integers": lambda t: t.update({"head.weight": torch.zeros(5, 24, dtype=torch.int64)}),
    "missing": lambda t: t.pop("head.weight"), "extra": lambda t: t.update({"extra.weight": torch.zeros(1)}),
    "constant NaN": lambda t: next(v for k, v in t.items() if k.startswith("constants:")).fill_(float("nan")),
    "constant shape": lambda t: t.update({k: torch.zeros(3, 24) for k in t if k.startswith("constants:")}),
    "constant scalar": lambda t: t.update({k: torch.zeros(()) for k in t if k.startswith("constants:")}),
    "constant missing": lambda t: t.pop(next(k for k in t if k.startswith("constants:"))),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_damaged_weights(saved, name):
    tensors = load_file(saved / "model.safetensors")
    BAD_TENSORS[name](tensors)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(InputError) as refusal:
        SparseViT.from_pretrained(saved)
    assert str(saved) in str(refusal.value)
    assert "files in the folder were not written together" not in str(refusal.value)


def test_a_dense_model_is_no_sparse_one_and_the_other_way_round(saved, tmp_path):
    save_pretrained(make_model(CONFIG), tmp_path / "dense")
    with pytest.raises(InputError, match=r"found: vitsparse\.vit version 1\n  remedy: .*holds a dense model"):
        SparseViT.from_pretrained(tmp_path / "dense")
    with pytest.raises(InputError, match=r"remedy: .*holds a sparse model"):
        load_pretrained(saved)


def test_files_of_two_models_mixed_up(saved, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    case_of("sparse", seed=3).sparse("torch").eval().save_pretrained(other)
    tensors = load_file(other / "model.safetensors")
    tensors["head.bias"] += 1
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(InputError, match="not written together"):
        SparseViT.from_pretrained(saved)
    case = case_of("sparse")
    case.sparse("torch").save_pretrained(saved)
    Circuit.full(case.circuit.graph).save(saved / "circuit.json")
    with pytest.raises(InputError, match=r"not written together[\s\S]*circuit.json"):
        SparseViT.from_pretrained(saved)


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 40), st.floats(allow_nan=True), st.text(max_size=3),
                   st.lists(st.integers(-2, 30), max_size=3), st.just({}), st.just([[0, 4]]), st.just("a0.h0"))


def leaves(value, path=()):
    """Every path in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    yield path
    for key, entry in items:
        yield from leaves(entry, (*path, key))


@settings(max_examples=150)
@given(st.data())
def test_no_damage_to_one_field_crashes(tmp_path_factory, data):
    """Refused with an InputError, or still a program whose every read is inside what was written."""
    case = case_of("sparse", "mean", config=ViTConfig(**{**CONFIG.to_dict(), "embed_dim": 9, "depth": 1}))
    folder = tmp_path_factory.mktemp("saved")
    case.sparse("torch").save_pretrained(folder)

    def change(config):
        *path, last = data.draw(st.sampled_from([path for path in leaves(config["plan"]) if path]))
        target = config["plan"]
        for key in path:
            target = target[key]
        target[last] = data.draw(VALUES)

    edit(folder, change)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        try:
            for backend in BACKENDS:
                sparse = SparseViT.from_pretrained(folder, backend=backend)
                out = sparse(case.images)
                assert out.shape[0] == len(case.images)
                sparse.forward_features(case.images)
        except InputError:
            pass


def test_a_loaded_model_does_not_depend_on_its_file(saved):
    """Nor on where in it the numbers lie: other writers of safetensors files do not pad the header."""
    file = saved / "model.safetensors"
    data, expected = file.read_bytes(), SparseViT.from_pretrained(saved)
    size = int.from_bytes(data[:8], "little")
    file.write_bytes((size + 1).to_bytes(8, "little") + data[8: 8 + size] + b" " + data[8 + size:])
    edit(saved, lambda config: config["sha256"].update({file.name: sha256_of(file)}))
    found = SparseViT.from_pretrained(saved)
    os.truncate(file, 0)
    assert all(value.data_ptr() % 4 == 0 for value in found.state_dict().values())
    assert all(torch.equal(value, found.state_dict()[key]) for key, value in expected.state_dict().items())


def test_an_interrupted_save_leaves_the_old_model(saved, monkeypatch):
    before = {path.name: sha256_of(path) for path in saved.iterdir()}
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        case_of("full").sparse("torch").save_pretrained(saved)
    assert {path.name: sha256_of(path) for path in saved.iterdir()} == before
