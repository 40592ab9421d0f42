"""What is exported runs elsewhere, on standard operators, and computes the circuit; what does not is refused."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.compiler.cases import CONFIG, Case, case_of
from tests.strategies import make_ablation, make_images, make_model
from tests.tolerances import BACKEND, error
from vitsparse.backends import portable
from vitsparse.circuit import Circuit, Graph
from vitsparse.circuit.files import sha256_of
from vitsparse.compiler import export_formats
from vitsparse.compiler.export import TOLERANCE, export
from vitsparse.compiler.export_formats import FORMATS, OPSET
from vitsparse.compiler.steps import ApplyPattern
from vitsparse.errors import InputError
from vitsparse.evaluation.runtimes import import_openvino
from vitsparse.model.config import ViTConfig
from vitsparse.version import __version__

ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch-export": ()}
SMALL = ViTConfig(img_size=6, patch_size=2, in_chans=1, num_classes=4, embed_dim=16, depth=1, num_heads=2,
                  init_values=0.5)


def need(format: str) -> None:
    """Skip where a package of the format is missing."""
    for package in PACKAGES[format]:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def random_case(granularity: str, groups: int = 1, *, config: ViTConfig = CONFIG, **options: str) -> Case:
    return case_of(config=config, graph=Graph(config.depth, config.num_heads, granularity, groups), **options)


def constant_pattern() -> Case:
    """One head looks the same way for every image: nothing but the mean reaches queries and keys."""
    graph = Graph(CONFIG.depth, CONFIG.num_heads, "qkv")
    keep = [not name.endswith(("->a0.h1<q>", "->a0.h1<k>")) for name in graph.edge_names]
    model = make_model(CONFIG)
    found = Case(model, Circuit(graph, np.array(keep)), make_ablation(model, graph, "mean"), make_images(CONFIG, 3))
    assert any(isinstance(step, ApplyPattern) for step in found.sparse().plan.steps)
    return found


def operators() -> Case:
    """A graph of operators: an attention whose scores are cut weighs all tokens alike."""
    graph = Graph(CONFIG.depth, CONFIG.num_heads, "operator")
    keep = [not name.startswith("b1.scale->") and name != "b0.act->b0.drop1" for name in graph.edge_names]
    model = make_model(CONFIG)
    found = Case(model, Circuit(graph, np.array(keep)), make_ablation(model, graph, "zero"), make_images(CONFIG, 3))
    assert found.circuit.uniform
    return found


AVERAGE = replace(SMALL, global_pool="avg", init_values=None)
CASES: dict[str, tuple[Callable[[], Case], str, dict]] = {
    "qkv with a constant pattern": (constant_pattern, "onnx", {}),
    "head, MLP groups, LayerScale, any batch": (partial(random_case, "head", 2, config=SMALL), "onnx",
                                                {"dynamic_batch": True}),
    "qkv, average": (partial(random_case, "qkv", config=AVERAGE), "openvino", {"batch": 3}),
    "layer, average, MLP groups, any batch": (partial(random_case, "layer", 3, config=AVERAGE), "openvino",
                                              {"dynamic_batch": True}),
    "operators": (operators, "openvino", {}),
    "block, zero, any batch": (partial(random_case, "block", kind="dense", ablation="zero"), "torch-export",
                               {"dynamic_batch": True}),
    "constant in onnx": (partial(case_of, "constant", config=SMALL), "onnx", {}),
    "constant in openvino": (partial(case_of, "constant", config=SMALL), "openvino", {}),
    "constant, any batch": (partial(case_of, "constant", config=SMALL), "openvino", {"dynamic_batch": True}),
    "constant in torch": (partial(case_of, "constant", config=SMALL), "torch-export", {"batch": 3}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_file_computes_the_circuit(name, tmp_path):
    make, format, options = CASES[name]
    need(format)
    case, file = make(), tmp_path / f"here{ENDINGS[format]}"
    sparse = case.sparse("reference")
    done = export(sparse, file, format, **options)
    batch = options.get("batch", 1)
    run = FORMATS[format].load(file)
    for size in (1, 3) if options.get("dynamic_batch") else (batch,):
        found = run(case.images[:size])
        assert error(found, case.exact[:size]) <= BACKEND
        poisoned = run(torch.full_like(case.images[:size], torch.nan))  # whether it really looks at the images
        assert poisoned.isnan().any() == bool(sparse.plan.steps)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == sorted(FORMATS[format].endings)
    assert (done.shape[0], done.classes) == (-1 if options.get("dynamic_batch") else batch, case.model.num_classes)
    assert done.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 0 < done.error <= BACKEND
    sparse.circuit.save(tmp_path / "circuit.json")
    facts = LOOK[format](file, done.shape)
    assert (facts["version"], facts["circuit"]) == (__version__, repr(case.circuit))
    assert facts["circuit_sha256"] == sha256_of(tmp_path / "circuit.json")


def look_into_onnx(file: Path, shape: tuple[int, ...]) -> dict[str, str]:
    import onnx

    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {""}  # a constant has no node
    assert not model.functions
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", OPSET)}
    for value, name in ((model.graph.input, "images"), (model.graph.output, "logits")):
        assert [entry.name for entry in value] == [name]
        first = value[0].type.tensor_type.shape.dim[0]
        assert (first.dim_param, first.dim_value) == (("batch", 0) if shape[0] == -1 else ("", shape[0]))
    return {entry.key.removeprefix("vitsparse."): entry.value for entry in model.metadata_props}


def look_into_openvino(file: Path, shape: tuple[int, ...]) -> dict[str, str]:
    model = import_openvino().Core().read_model(file)
    kinds = {op.get_type_info().version_id for op in model.get_ops()}
    assert all(kind.startswith("opset") for kind in kinds)
    assert (model.input("images").partial_shape.is_static, model.output("logits").partial_shape.is_static) == (
        (shape[0] != -1,) * 2)
    assert "f16" not in {op.get_output_element_type(0).get_type_name() for op in model.get_ops() if op.outputs()}
    return {name: model.get_rt_info(["vitsparse", name]).astype(str)
            for name in ("version", "circuit", "circuit_sha256")}


def look_into_torch(file: Path, shape: tuple[int, ...]) -> dict[str, str]:
    with zipfile.ZipFile(file) as archive:
        parts = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    assert not any(part.startswith((b"\x80\x02", b"PK")) for part in parts.values())  # pickle, or torch.save's archive
    assert parts["data/sample_inputs/model.pt"] == b""
    for which in ("weights", "constants"):
        config = json.loads(parts[f"data/{which}/model_{which}_config.json"])["config"]
        assert not any(entry["use_pickle"] for entry in config.values())
    nodes = json.loads(parts["models/model.json"])["graph_module"]["graph"]["nodes"]
    assert {node["target"].rsplit(".", 2)[0] for node in nodes} == {"torch.ops.aten"}
    return json.loads(parts["extra/vitsparse.json"])


LOOK = {"onnx": look_into_onnx, "openvino": look_into_openvino, "torch-export": look_into_torch}


@pytest.mark.parametrize(("format", "config"), [("onnx", SMALL), ("torch-export", AVERAGE)])
def test_a_dense_model(format, config, tmp_path):
    need(format)
    case = case_of("full", config=config)
    file = tmp_path / "new" / f"dense{ENDINGS[format]}"
    done = export(case.model.train(), file, format, batch=3)
    assert case.model.training
    assert error(FORMATS[format].load(file)(case.images), case.exact) <= BACKEND
    assert f"{file}: {format}" in str(done)


@pytest.fixture
def sparse():
    return case_of(config=SMALL).sparse("torch").eval()


def refused(model, file: Path, message: str, format: str = "torch-export", **options) -> None:
    """Nothing that was in the folder is changed, and nothing is added."""
    before = {path: path.is_file() and path.read_bytes() for path in file.parent.rglob("*")}
    with pytest.raises(InputError, match=message):
        export(model, file, format, **options)
    assert before == {path: path.is_file() and path.read_bytes() for path in file.parent.rglob("*")}


def test_wrong_input(sparse, tmp_path):
    refused(sparse, tmp_path / "a.onnx", "did you mean 'onnx'", "onx")
    refused(sparse, tmp_path / "a.onnx", r"a name in \.pt2")
    refused(sparse, tmp_path / "a.pt2", "at least one image", batch=0)
    for name in ("a.pt2", "b.bin", "c.xml"):
        (tmp_path / name).write_text("mine")
    refused(sparse, tmp_path / "a.pt2", "there already")
    refused(sparse, tmp_path / "b.xml", r"there already(.|\n)*b\.bin", "openvino")
    refused(sparse, tmp_path / "c.xml", "there already", "openvino")
    refused(sparse, tmp_path / "a.pt2" / "d.pt2", "cannot be written")
    packed = case_of(config=SMALL).sparse("cpu", inference_only=True)
    refused(packed, tmp_path / "e.pt2", "inference_only")


@pytest.mark.parametrize(("format", "package"), [(format, one) for format in PACKAGES for one in PACKAGES[format]])
def test_a_missing_package_is_named(format, package, sparse, tmp_path, monkeypatch):
    need(format)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    missing = rf"package {package} is not installed(.|\n)*pip install 'vitsparse\[export\]'"
    refused(sparse, tmp_path / f"a{ENDINGS[format]}", missing, format)


def infinite(model) -> None:
    """Finite in float64, but not in what is exported."""
    model.head.weight.mul_(1e38)
    model.head.bias.fill_(3e38)
    model.head.bias[0] = -3e38


DAMAGES = {"not finite(.|\n)*torch": infinite,
           "not finite(.|\n)*float64": lambda model: model.head.bias.fill_(torch.nan),
           "all zero": lambda model: (model.head.weight.zero_(), model.head.bias.zero_())}


@pytest.mark.parametrize("message", DAMAGES)
def test_what_is_no_answer_is_refused(message, sparse, tmp_path):
    with torch.no_grad():
        DAMAGES[message](sparse)
    refused(sparse, tmp_path / "a.pt2", message)


@pytest.mark.parametrize(("message", "change"), [
    ("something else(.|\n)*1e-04", lambda logits: logits + 2 * TOLERANCE * logits.abs().max()),
    ("not finite", lambda logits: logits * torch.nan),
    ("all zero", torch.zeros_like),
    ("another shape", lambda logits: logits[:1]),
])
def test_a_runtime_that_computes_something_else(message, change, sparse, tmp_path, monkeypatch):
    def load(file: Path) -> Callable[[Tensor], Tensor]:
        run = export_formats._load_torch(file)
        return lambda images: change(run(images))

    monkeypatch.setitem(FORMATS, "torch-export", replace(FORMATS["torch-export"], load=load))
    refused(sparse, tmp_path / "a.pt2", message, batch=2)


def test_an_operator_that_only_we_know_is_refused(tmp_path, monkeypatch):
    importlib.import_module("vitsparse.ops.attention")  # registers it
    monkeypatch.setattr(portable, "attention", torch.ops.vitsparse.attention)
    dense = case_of("full", config=SMALL).sparse("torch")
    refused(dense, tmp_path / "a.pt2", r"standard operators only(.|\n)*vitsparse\.attention")


def test_weights_too_large_for_onnx(sparse, tmp_path, monkeypatch):
    need("onnx")
    monkeypatch.setattr(export_formats, "MAX_ONNX_BYTES", 1000)
    refused(sparse, tmp_path / "a.onnx", r"at most 1000 bytes(.|\n)*openvino", "onnx")
