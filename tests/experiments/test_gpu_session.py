"""What travels to another machine and back arrives whole; a session there ends in time and goes on where it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time

import pytest
import torch
from safetensors.torch import load_file

from experiments import carry
from vitsparse import InputError, ViT
from vitsparse.model.weights import save_pretrained

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}


@pytest.fixture
def sent(tmp_path):
    """Two files, larger than three parts of 20 KB together, and the trips that they make."""
    files = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for number, file in enumerate(files):
        file.write_bytes(os.urandom(30_000 + number))
    return files, carry.split_for_trips(files, tmp_path / "trips", 20_000)


def test_parts_arrive_in_any_order_and_are_joined_once_complete(sent, tmp_path):
    files, trips = sent
    assert [trip.name for trip in trips] == ["1", "2", "3", "4"]
    assert all(sum(file.stat().st_size for file in trip.iterdir()) < 22_000 for trip in trips)
    there, into = tmp_path / "there", tmp_path / "into"
    for trip in (trips[2], trips[0], trips[3]):
        shutil.copytree(trip, there, dirs_exist_ok=True)
    assert [name.rpartition(".")[2] for name in carry.join(there, into)] == ["2"]
    assert not into.exists()
    shutil.copytree(trips[1], there, dirs_exist_ok=True)
    assert carry.join(there, into) == []
    assert [(into / file.name).read_bytes() for file in files] == [file.read_bytes() for file in files]


def test_a_damaged_part_is_named(sent, tmp_path):
    _, trips = sent
    part = next(trips[1].glob("*.2"))
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"damaged on its way\n  where: .*\.2\n"):
        carry.join(tmp_path / "trips", tmp_path / "into")
    assert not (tmp_path / "into").exists()


@pytest.fixture
def cells(tmp_path):
    """The models of three finished cells and of one that has no result yet; folders of models and of results."""
    out, results = tmp_path / "out", tmp_path / "results"
    results.mkdir()
    for seed, name in enumerate(("dense-seed", "dense-own", "dense-own+5", "classes-dense")):
        torch.manual_seed(seed)
        save_pretrained(ViT(**TINY), out / name)
        (out / name / "checkpoint").mkdir()
        if name != "classes-dense":
            (results / f"{name}.json").write_text("{}")
    return out, results


def test_models_come_back_once_and_most_needed_first(cells, tmp_path):
    (out, results), size = cells, carry.BESIDE + (cells[0] / "dense-own/model.safetensors").stat().st_size
    first, second = tmp_path / "first", tmp_path / "second"
    assert carry.models(out, results, first, limit=size, part=20_000) == (["dense-own"], ["dense-seed", "dense-own+5"])
    assert carry.models(out, results, second, limit=9 * size, part=20_000) == (["dense-seed", "dense-own+5"], [])
    assert carry.models(out, results, tmp_path / "third", limit=9 * size, part=20_000) == ([], [])
    assert all(file.stat().st_size <= 20_000 for folder in (first, second) for file in folder.iterdir())
    for folder in (first, second):
        assert carry.join(folder, tmp_path / "new") == []
    for name, exact in (("dense-own", True), ("dense-seed", True), ("dense-own+5", False)):
        was, found = (load_file(place / name / "model.safetensors") for place in (out, tmp_path / "new"))
        assert {str(tensor.dtype) for tensor in found.values()} == {"torch.float32" if exact else "torch.float16"}
        assert all(torch.equal(found[key], was[key].to(found[key].dtype)) for key in was)
        assert not (tmp_path / "new" / name / "checkpoint").exists()
    assert carry.models(tmp_path / "new", results, tmp_path / "third", limit=9 * size, part=20_000) == ([], [])
    save_pretrained(ViT(**TINY), out / "dense-own")  # made anew
    assert carry.models(out, results, tmp_path / "third", limit=9 * size, part=20_000) == (["dense-own"], [])


PYTHON = """#!/bin/sh
case "$*" in
  *experiments.carry*) PYTHONPATH={root} exec {python} "$@" ;;
  *--status*) echo "pareto dense-own open" ;;
  *experiments*) echo "$*" > asked; mkdir -p runs/gpu/out
    cp -r {model} runs/gpu/out/dense-own; echo "{{}}" > runs/gpu/results/full/dense-own.json; sleep 100 ;;
esac
"""


@pytest.fixture
def session(root, tmp_path, cells):
    """A tree with the script alone, a Python whose journal never ends, and a function that runs a session there."""
    tree, python = tmp_path / "tree", tmp_path / "python"
    for name in ("experiments", ".carry"):
        (tree / name).mkdir(parents=True)
    shutil.copy(root / "experiments/gpu_session.sh", tree / "experiments")
    python.write_text(PYTHON.format(root=root, python=sys.executable, model=cells[0] / "dense-own"))
    python.chmod(0o755)

    def run(base, out, *parts, seconds=60):
        start = time.monotonic()
        done = subprocess.run([tree / "experiments/gpu_session.sh", tmp_path / out, *parts], capture_output=True,
                              text=True, timeout=90, env=os.environ | {
                                  "PYTHON": str(python), "BASE": str(tmp_path / base), "SECONDS_ALL": str(seconds),
                                  "SECONDS_PACK": "8", "OMP_NUM_THREADS": "1"})
        assert time.monotonic() - start < seconds + 10
        return done, (tmp_path / out / "summary.txt").read_text()

    return tree, run


def test_a_session_waits_for_images_ends_in_time_and_goes_on_elsewhere(session, sent, tmp_path):
    (tree, run), (files, trips) = session, sent
    for trip in trips[:3]:
        shutil.copytree(trip, tree / ".carry" / trip.name)
    done, summary = run("machine", "one", "receive", "journal")
    assert done.returncode == 0
    assert summary == "receive: waits for what has not come yet\njournal: waits for what has not come yet\n"
    shutil.rmtree(tree / ".carry")
    shutil.copytree(trips[3], tree / ".carry" / "4")

    assert "done in" in run("machine", "two", "receive")[1]
    done, summary = run("machine", "two", "journal", "pack", seconds=11)
    assert summary.startswith("journal: stopped after 3 s; the next call goes on\npack: done in")
    assert "models taken: dense-own\n" in done.stdout
    assert "open: pareto dense-own open" in done.stdout
    assert all((tmp_path / "machine/images" / file.name).read_bytes() == file.read_bytes() for file in files)
    asked = (tree / "asked").read_text()
    assert "--data runs/gpu/images --out runs/gpu/out --results runs/gpu/results --device auto" in asked
    with tarfile.open(tmp_path / "two/results.tar.gz") as archive:
        archive.extractall(tree / "experiments/results", filter="data")
    shutil.copytree(tmp_path / "two", tree / ".carry/models")

    done, summary = run("another", "three", "receive")
    assert summary == "receive: waits for what has not come yet\n"  # for the images
    assert (tmp_path / "another/results/full/dense-own.json").exists()
    assert load_file(tmp_path / "another/out/dense-own/model.safetensors").keys() == load_file(
        tmp_path / "out/dense-own/model.safetensors").keys()
