"""Publishing: what belongs together goes into the folder, the index and the cards; anything else is refused."""

from __future__ import annotations

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch
import yaml

from experiments import judge, model_card, publish, sizes
from experiments.lab import Lab, save
from tests.strategies import make_ablation, make_circuit, make_model
from vitsparse import Graph, create_model, sparsify
from vitsparse.circuit.files import read_json, sha256_of, write_json
from vitsparse.evaluation.intervals import right_answers
from vitsparse.model import pretrained
from vitsparse.model.config import ViTConfig

ARCHITECTURE = "vit_tiny_imagenet_p16_d16_l2_h2"
NAME = f"{ARCHITECTURE}.first5"
SIZE = dataclasses.replace(sizes.SMALL, name="tiny", model=ARCHITECTURE, classes=5, take=64)
CONFIG = ViTConfig(img_size=64, patch_size=16, num_classes=5, embed_dim=16, depth=2, num_heads=2)
MACHINE = {"cpu": "a processor", "threads": 2, "gpu": None, "torch": "2.11", "date": "2030-01-02T03:04:05", "commit":
           "0123abc"}
TIMES = {"p20": 1.0, "p50": 2.0, "p80": 4.0, "n": 30}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Noise as images, the size that the models have, and a shelf of our own."""
    monkeypatch.setitem(sizes.SIZES, "tiny", SIZE)
    images = Lab(SIZE, None, tmp_path, "cpu").images("test")
    monkeypatch.setattr("vitsparse.data.load", lambda *_, **__: images)
    monkeypatch.setattr(pretrained, "INDEX_FILE", tmp_path / "index.json")
    pretrained.write_index({}, tmp_path / "index.json")
    return tmp_path


def cell_of(bench, kind: str, **changes):
    """(folder, result file, latency file) of a cell whose model is random: a dense one or half of it."""
    model = make_model(CONFIG)
    if kind == "sparse":
        graph = Graph.of(model, mlp_groups=2)
        model = sparsify(model, make_circuit(graph, "sparse", 3), ablation=make_ablation(model, graph, "mean")).eval()
    save(model, bench / kind)
    batches = Lab(SIZE, None, bench, "cpu").batches("test")
    row = judge.row(model, batches, make_model(CONFIG) if kind == "sparse" else None, CONFIG)
    about = {"cell": kind, "size": "tiny", "command": "python -m experiments --size tiny", "machine": MACHINE}
    write_json(bench / f"{kind}.json", {
        "format": "vitsparse.experiments", "version": 1, **about, "settings": {"recipe": {"lr": 0.002}, "seed": 0},
        "row": row, "before": row if kind == "sparse" else None,
        "training": {"epochs": 5, "seconds": 61.5, "images_per_second": 700.2}} | changes)
    timed = {"model": {"backend": "cpu", **TIMES}, "dense": {"openvino": TIMES}, "strongest": "openvino",
             "speedup": {"p20": 1.8, "p50": 2.125, "p80": 2.2}}
    write_json(bench / f"{kind}.latency.json", {"format": "vitsparse.experiments.latency", "version": 1, **about,
                                                "batches": {"1": timed}})
    return bench / kind, bench / f"{kind}.json", bench / f"{kind}.latency.json"


def run(bench, folder, result, *more, name: str = NAME) -> None:
    publish.main([str(folder), "--name", name, "--result", str(result), "--weights", str(bench / "weights"), "--index",
                  str(bench / "index.json"), *map(str, more)])


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_what_is_published_loads_by_name_and_says_what_it_is(bench, capsys, kind):
    folder, result, latency = cell_of(bench, kind)
    run(bench, folder, result, "--latency", latency, "--data", bench)
    place, row = bench / "weights" / NAME, read_json(result)["row"]
    extra = ["circuit.json"] if kind == "sparse" else []
    assert sorted(path.name for path in place.iterdir()) == sorted(
        ["README.md", "config.json", "model.safetensors", *extra])
    model = create_model(ARCHITECTURE, pretrained=True, weights=bench / "weights")
    right = right_answers(model, Lab(SIZE, None, bench, "cpu").batches("test"))
    assert (right != judge.answers(row)).mean() <= publish.MAX_CHANGED

    card = (place / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    share = f"{row['accuracy']:.2%}"
    for text in (f'"{NAME}", pretrained=True', share, f"{row['images']} test images", f"{row['flops'] / 1e6:,.1f} M",
                 "| recipe.lr | 0.002 |", "5 epochs in 62 s", "2.12 [1.8, 2.2] (openvino)", "a processor, 2 threads",
                 "2030-01-02, commit 0123abc", "non-commercial research", "images 0 to 419 train",
                 f"{(right != judge.answers(row)).sum()} images change", "## Limits of use"):
        assert text in card, text
    assert ("Before fine-tuning" in card) == ("edges kept" in card) == (kind == "sparse")
    page = (bench / "weights/README.md").read_text()
    assert f"[{NAME}]({NAME}/README.md)" in page
    assert sha256_of(place / "model.safetensors")[:16] in page
    assert share in page
    assert share in capsys.readouterr().out


def test_publishing_again_replaces_and_keeps_the_place(bench):
    dense, sparse = cell_of(bench, "dense"), cell_of(bench, "sparse")
    run(bench, *dense[:2])
    run(bench, *sparse[:2], name=f"{NAME}_pruned")
    before = (bench / "index.json").read_text()
    run(bench, *dense[:2])
    assert (bench / "index.json").read_text() == before
    run(bench, *sparse[:2])
    models = pretrained.read_index(bench / "index.json")
    assert [(name, entry.architecture) for name, entry in models.items()] == [
        (NAME, "sparse_vit"), (f"{NAME}_pruned", "sparse_vit")]
    assert (bench / "weights" / NAME / "circuit.json").exists()
    assert "Not measured." in (bench / "weights" / NAME / "README.md").read_text()


def refused(bench, capsys, *arguments, name: str = NAME) -> str:
    """The complaint; nothing may have been published."""
    def published() -> dict:
        files = [bench / "index.json", *(path for path in (bench / "weights").rglob("*") if path.is_file())]
        return {path: path.read_bytes() for path in files}

    before = published()
    with pytest.raises(SystemExit, match="2"):
        run(bench, *arguments, name=name)
    assert published() == before
    return capsys.readouterr().err


@pytest.mark.parametrize(("name", "message"), [
    ("vit_tiny_imagenet_p16_d16_l2_h4.first5", r"num_heads=2[\s\S]*num_heads=4"), (ARCHITECTURE, "ARCHITECTURE.TAG"),
    (f"{ARCHITECTURE}.../../x", "ARCHITECTURE.TAG"), ("resnet50.a", "unknown model"),
])
def test_a_wrong_name_is_refused(bench, capsys, name, message):
    assert re.search(message, refused(bench, capsys, *cell_of(bench, "dense")[:2], name=name))


def test_files_that_do_not_belong_together_are_refused(bench, capsys):
    dense, sparse = cell_of(bench, "dense"), cell_of(bench, "sparse")
    assert "the result is of another model" in refused(bench, capsys, dense[0], sparse[1])
    assert "the latency is of another cell" in refused(bench, capsys, dense[0], dense[1], "--latency", sparse[2])
    assert "no result of an experiment" in refused(bench, capsys, dense[0], dense[0] / "config.json")
    assert "does not exist" in refused(bench, capsys, bench / "nowhere", dense[1])


def test_float16_must_answer_as_the_result_says(bench, capsys, monkeypatch):
    folder, file, _ = cell_of(bench, "dense")
    result = read_json(file)
    wrong = judge.answers(result["row"])
    wrong[:8] = ~wrong[:8]
    result["row"] |= {"right": np.packbits(wrong).tobytes().hex(), "accuracy": float(wrong.mean())}
    write_json(file, result)
    assert "does not answer as the result says" in refused(bench, capsys, folder, file, "--data", bench)
    monkeypatch.setitem(sizes.SIZES, "tiny", dataclasses.replace(SIZE, take=48))
    assert "on other images" in refused(bench, capsys, folder, file, "--data", bench)


def test_all_weights_together_stay_small(bench, capsys, monkeypatch):
    dense = cell_of(bench, "dense")[:2]
    run(bench, *dense)
    size = sum(entry.bytes for entry in pretrained.read_index(bench / "index.json").values())
    monkeypatch.setattr(publish, "MAX_BYTES", 2 * size)
    assert "too large" in refused(bench, capsys, *dense, name=f"{NAME}_again")
    monkeypatch.setattr(publish, "MAX_BYTES", 2 * size + 1)
    run(bench, *dense, name=f"{NAME}_again")


def test_a_model_beyond_its_name_keeps_what_differs(bench):
    folder, result, _ = cell_of(bench, "dense")
    shutil.rmtree(folder)
    torch.manual_seed(0)
    save(create_model(ARCHITECTURE, num_classes=5, init_values=0.1).eval(), folder)
    data = read_json(result)
    data["row"]["parameters"] += 4 * CONFIG.embed_dim  # two factors a block
    write_json(result, data)
    run(bench, folder, result)
    assert pretrained.read_index(bench / "index.json")[NAME].model_args == {"init_values": 0.1}
    assert create_model(NAME, device="meta").config.init_values == 0.1


def test_the_pages_of_the_repository_are_what_the_index_says(root):
    """Nothing in them was written by hand."""
    models = pretrained.read_index(root / "vitsparse/model/pretrained.json")
    assert (root / "weights/README.md").read_text() == model_card.index_page(models)
    for name, entry in models.items():
        for file, stamp in entry.files.items():
            pretrained.check(root / "weights" / name / file, stamp)
        assert entry.description in (root / "weights" / name / "README.md").read_text()
