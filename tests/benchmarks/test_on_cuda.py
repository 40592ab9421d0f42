"""The model benchmarks of a GPU, run on the CPU: graphs are plain calls there, and clocks are the CPU's."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
import types

import pytest
import torch

from benchmarks.model import __main__ as command
from benchmarks.model import cuda_candidates, on_cuda
from benchmarks.model.cuda_candidates import NEEDED, CudaCandidates, circuit_of
from benchmarks.model.gpu_table import NOT_MEASURED, SHOWN, gpu_readme
from benchmarks.model.latency import QUICK_MODEL
from benchmarks.model.results import default_file, line, load, misses, store
from benchmarks.model.targets import MODEL, ROWS, compare
from vitsparse import InputError, SparseViT
from vitsparse.evaluation import baselines

OPTIONAL = ("pydantic", "tyro", "openvino", "onnx", "onnxruntime", "onnxscript", "timm", "torchvision", "matplotlib",
            "sklearn", "pyarrow")


class Runner:
    """What ``SparseViT.capture`` gives, without a graph."""

    how = "steps"

    def __init__(self, sparse, images):
        self.sparse, self.input, self.output = sparse, images.clone(), torch.full((len(images), 10), torch.nan)

    def replay(self):
        self.output = self.sparse(self.input)


def milliseconds(function):
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


@pytest.fixture
def cpu(monkeypatch):
    """Everything that needs a GPU replaced; makes candidates of the small model."""
    for module in (baselines, cuda_candidates):
        monkeypatch.setattr(module, "captured", functools.partial)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(SparseViT, "capture", lambda sparse, images: Runner(sparse, images), raising=False)
    monkeypatch.setattr(on_cuda, "COLD", milliseconds)
    monkeypatch.setattr(on_cuda, "WARM", milliseconds)
    return functools.partial(CudaCandidates, QUICK_MODEL, 2, dtype=torch.float32, backends=("torch",), device="cpu")


def run(candidates, seconds=60.0):
    return list(on_cuda.measured(candidates, "float32", seconds, rounds=3))


def test_each_candidate_is_checked_then_timed_and_compared(cpu):
    rows = run(cpu())
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("error", "time", "speed-up", "price")}
    assert {row["name"] for row in by_kind["error"]} == {row["name"] for row in by_kind["time"]}
    assert {*NEEDED, "D autotune", "half, torch", "half, mean, torch"} <= {row["name"] for row in by_kind["time"]}
    assert all(row["met"] and row["error"] < 2e-3 for row in by_kind["error"])
    assert not misses(rows)
    ratio = next(row for row in by_kind["speed-up"] if row["name"] == "half vs C")
    assert (ratio["ours"], ratio["backend"], ratio["theirs"].rpartition(" ")[0]) == ("half, torch", "torch", "C half")
    assert next(row for row in by_kind["price"] if row["name"] == "mixed vs half")["theirs"] == "half, torch"
    shares = {row["name"]: row["flops_share"] for row in by_kind["time"]}
    assert shares["D eager"] is None
    assert 0.3 < shares["half, torch"] < 0.6
    json.dumps(rows, allow_nan=False)
    assert all(line(row) for row in rows)


@pytest.mark.parametrize("wrong", [0.1, float("nan")])
def test_a_candidate_that_computes_something_else_is_reported_and_not_timed(cpu, monkeypatch, wrong):
    make = CudaCandidates.make
    monkeypatch.setattr(CudaCandidates, "make", lambda self, name: (
        (lambda: make(self, name)() + wrong) if name == "half, torch" else make(self, name)))
    rows = run(cpu())
    (missed,) = misses(rows)
    assert (missed["kind"], missed["name"], missed["circuit"]) == ("error", "half, torch", "half")
    assert "half, torch" not in {row["name"] for row in rows if row["kind"] == "time"}
    assert not [row for row in rows if "half, torch" in (row.get("ours"), row.get("theirs"))]


def test_what_cannot_be_made_is_said_and_the_rest_goes_on(cpu, monkeypatch, capsys):
    def fail(model, images):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setitem(baselines.CUDA_BASELINES, "compile", fail)
    rows = run(cpu(), seconds=0)
    said = capsys.readouterr().err
    assert "D compile: left out, OutOfMemoryError: no memory left" in said
    assert "D autotune: left out, no time left" in said
    assert {row["name"] for row in rows if row["kind"] == "time"} == {
        "D eager", "C half eager", "E compile",
        *(f"{name}, torch" for name in cuda_candidates.BOUND if name != "found")}


def test_a_candidate_stands_for_one_circuit():
    found = {name: circuit_of(name) for name in ("D eager", "C half compile", "C found eager", "E compile",
                                                 "half, cuda", "half, mean, cuda")}
    assert list(found.values()) == ["full", "half", "found_nodes", "edges50", "half", "half, mean"]


def test_bounds_are_those_of_the_table():
    rows = {row.name: row for row in ROWS}
    assert on_cuda.gpu_bounds(rows["lean vs D"], 0.45) == {1: (2.5, None), 128: (2.0, 3.333)}
    assert on_cuda.gpu_bounds(rows["third vs D"], 0.3) == {}
    assert {row.name for row in ROWS if on_cuda.gpu_bounds(row, 0.5)} == {*SHOWN}


@pytest.mark.parametrize(("gpu", "met"), [("NVIDIA H200", False), ("Tesla T4", None)])
def test_one_image_has_a_bound_of_its_own_on_an_h200(gpu, met, monkeypatch):
    monkeypatch.setattr(on_cuda, "gpu_name", lambda: gpu)
    candidates = CudaCandidates(MODEL, 1)
    times = {name: torch.full((3,), 0.11).numpy() for name in ("half, cuda", "half, mean, cuda", "full, cuda")}
    rows = list(on_cuda.times_of(candidates, dict.fromkeys(times), times, times))
    assert [row.get("met") for row in rows] == [met, None, None]


def test_geforce_cards_are_measured_with_both_kinds_of_sums(monkeypatch):
    monkeypatch.setattr(on_cuda, "gpu_name", lambda: "NVIDIA GeForce RTX 3070")
    assert on_cuda.sums_of("float16") == ("float32", "float16")
    assert on_cuda.sums_of("bfloat16") == ("float32",)
    flags = torch.backends.cuda.matmul
    with on_cuda.adding_up_in("float16"):
        assert flags.allow_fp16_accumulation
    assert not flags.allow_fp16_accumulation


def table_of(gpu: str, ratio: float) -> dict:
    times = {"D compile": torch.tensor([ratio] * 3).numpy(), "half, cuda": torch.ones(3).numpy()}
    candidates = types.SimpleNamespace(flops={"half, cuda": 0.5})
    (bounded,) = (row for row in on_cuda.rows_of(candidates, "cuda", True) if row.name == "half vs D")
    (compared,) = compare((bounded,), 1, times)
    rows = [{"sums": "float32", "backend": "cuda", **compared},
            *({"kind": "time", "sums": "float32", "batch": 1, "name": name, "ms": float(ms[0])}
              for name, ms in times.items())]
    return {"machine": {"gpu": gpu, "dtype": "float16", "torch": "2", "date": "2026-01-01T", "commit": "c"},
            "rows": rows}


def test_devices_that_nobody_ran_are_not_estimated(tmp_path):
    store(tmp_path / "tesla-t4-float16.json", "latency", table_of("Tesla T4", 3.0))
    store(tmp_path / "nvidia-l4-float16.json", "latency", table_of("NVIDIA L4", 2.0))
    store(tmp_path / "amd-epyc.json", "latency", {"machine": {}, "rows": []})
    text = gpu_readme(tmp_path)
    row = next(text for text in text.splitlines() if text.startswith("| half vs D"))
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    assert cells == ["3.00x [3.00, 3.00] (cuda)", *[NOT_MEASURED] * 5, "2.00x [2.00, 2.00] (cuda, 2.5 missed)",
                     NOT_MEASURED]
    assert "| T4, 1 | 3 | 1 | not measured" in text
    assert "RTX 3070: not measured." in text


def test_the_command_keeps_each_row_as_it_comes(tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.json"
    seen = []

    def section(settings, *, quick):
        for batch in settings.batches:
            seen.append(len(load(file)["latency"]["rows"]) if file.exists() else 0)
            yield {**table_of("x", 3.0)["rows"][0], "batch": batch}

    monkeypatch.setattr(on_cuda.Settings, "check", lambda self: None)
    monkeypatch.setattr(command, "facts_of_gpu", lambda dtype: {"gpu": "a card", "dtype": dtype})
    monkeypatch.setitem(command.CUDA_SECTIONS, "latency", section)
    command.main(["--device", "cuda", "--dtype", "bfloat16", "--batches", "1,2,3", "--out", str(file)])
    assert seen == [0, 1, 2]
    assert len(load(file)["latency"]["rows"]) == 3
    assert load(file)["latency"]["machine"] == {"gpu": "a card", "dtype": "bfloat16"}
    assert "half vs D (cuda)" in capsys.readouterr().out
    assert default_file({"gpu": "NVIDIA H200", "dtype": "float16"}).name == "nvidia-h200-float16.json"


@pytest.mark.parametrize("arguments", [["memory", "--device", "cuda"], ["--batches", "0"], ["--dtype", "int8"]])
def test_what_a_gpu_cannot_do_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert "error:" in capsys.readouterr().err


def test_without_a_gpu_or_bfloat16_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="there is no GPU"):
        on_cuda.Settings().check()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(InputError, match="has no bfloat16"):
        on_cuda.Settings(dtype="bfloat16").check()


def test_needs_no_optional_package():
    """What a bare machine with a GPU runs: the library, these benchmarks, and the collection of the tests for a GPU."""
    program = f"""if True:
        import sys
        sys.modules.update(dict.fromkeys({OPTIONAL}))  # as if none of them were installed
        import pytest
        import vitsparse
        import benchmarks.model.__main__
        sys.exit(pytest.main(["-m", "gpu", "--collect-only", "-q"]))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
