"""``vitsparse export``: folders in, checked files out; bad input is one message, and nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.tolerances import BACKEND, error
from vitsparse.cli import main
from vitsparse.compiler import SparseViT
from vitsparse.compiler.export_formats import FORMATS
from vitsparse.model.weights import load_pretrained


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_a_fine_tuned_model(finished, images, tmp_path, capsys):
    """Its weights are nobody's but its own, so the definition is its own plan in float64."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    file = tmp_path / "tuned.xml"
    assert main(["export", str(finished / "finetuned"), "--format", "openvino", "--out", str(file)]) == 0
    expected = SparseViT.from_pretrained(finished / "finetuned", backend="reference").double()(images.double())
    assert error(FORMATS["openvino"].load(file)(images), expected) <= BACKEND
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tuned.bin", "tuned.xml"]
    shown = capsys.readouterr().out
    assert f"{file}: openvino, float32, images [1, 1, 8, 8] -> logits [1, 10]" in shown
    assert "ran it on 4 images" in shown


@torch.no_grad()
def test_a_dense_model_into_a_folder(finished, images, tmp_path, capsys):
    folder = tmp_path / "new"
    assert main(["export", str(finished / "dense"), "--format", "torch-export", "--dynamic-batch",
                 "--out", str(folder)]) == 0
    assert [path.name for path in folder.iterdir()] == ["model.pt2"]
    expected = load_pretrained(finished / "dense").double()(images.double())
    assert error(FORMATS["torch-export"].load(folder / "model.pt2")(images), expected) <= BACKEND
    assert "images [any, 1, 8, 8]" in capsys.readouterr().out


def status(*arguments: object) -> int:
    """The exit status; bad flags end in SystemExit."""
    try:
        return main(["export", *map(str, arguments)])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize(("arguments", "message"), [
    (["dense", "--format", "tflite"], "tflite"),
    (["dense", "--format", "torch-export", "--out", "model.onnx"], "a name in .pt2"),
    (["dense", "--format", "torch-export", "--out", "mine.pt2"], "there already"),
    (["dense", "--format", "torch-export", "--out", "mine.pt2/in.pt2"], "cannot be written"),
    (["dense", "--format", "torch-export", "--batch", "0"], "at least one image"),
    (["nowhere"], "nowhere"),
    ([".", "--format", "torch-export"], "config.json"),
    (["empty"], "not a saved SparseViT"),
])
def test_bad_input(arguments, message, finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished / "dense", tmp_path / "dense")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    (tmp_path / "mine.pt2").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = sorted(Path().rglob("*"))
    assert status(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(Path().rglob("*")) == before
    assert Path("mine.pt2").read_text() == "mine"
