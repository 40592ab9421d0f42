"""What owners of a GPU are told to run exists: the notebook is one, its commands parse, and the session goes on."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest

from benchmarks.model.__main__ import CUDA_SECTIONS, argument_parser
from benchmarks.model.on_cuda import BATCHES, rows_of
from benchmarks.model.results import default_file
from benchmarks.model.targets import Row

CODE_KEYS = {"cell_type", "id", "metadata", "source", "outputs", "execution_count"}
MODULES = ("benchmarks.model", "pytest", "vitsparse", "venv", "pip", "gpu")  # the last is pytest's own -m


@pytest.fixture
def pages(root) -> dict[str, str]:
    """The text of what is to be run, by file: code cells, and indented blocks or inline code that begin with python."""
    notebook = json.loads((root / "docs/gpu/colab_t4.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    page = (root / "docs/gpu/rtx3070.md").read_text()
    blocks = re.findall(r"^    (.+)$", page, re.M) + re.findall(r"`(python[^`]+)`", page)
    return {"notebook": "\n".join(cells), "page": "\n".join(blocks),
            "session": (root / "benchmarks/gpu_session.sh").read_text().replace("\\\n", " ")}


def commands_of(text: str, module: str) -> list[list[str]]:
    """The arguments of every ``python -m module`` in a text."""
    found = re.findall(rf'(?:python[\d.]*|"\$python") -m {re.escape(module)}\b(.*)', text)
    return [shlex.split(arguments.split("&&")[0].rstrip(": ")) for arguments in found]


def test_the_notebook_is_one(root):
    notebook = json.loads((root / "docs/gpu/colab_t4.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["accelerator"] == "GPU"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert isinstance(cell["source"], list)
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] == "markdown":
            assert cell.keys() == {"cell_type", "id", "metadata", "source"}
            continue
        assert cell.keys() == CODE_KEYS
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        python = "".join(line for line in cell["source"] if not line.startswith(("!", "%")))
        compile(python, cell["id"], "exec")


@pytest.mark.parametrize("page", ["notebook", "page", "session"])
def test_every_command_exists(pages, page):
    parser, seen = argument_parser(), 0
    for module in re.findall(r"-m ([\w.]+)", pages[page]):
        assert module in MODULES, module
    for arguments in commands_of(pages[page], "benchmarks.model"):
        numbers = [re.sub(r"^\$\{?\w+(:-(\d+))?\}?$", r"\2", word) if word.startswith("$") else word
                   for word in arguments]
        given = parser.parse_args([word or "float16" for word in numbers])
        assert set(given.sections) <= CUDA_SECTIONS.keys()
        seen += 1
    assert seen
    tests = commands_of(pages[page], "pytest")
    assert any("gpu" in arguments and "--record-gpu" in arguments for arguments in tests)
    assert all("--benchmark-only" in arguments for arguments in tests if "addopts=--import-mode=importlib" in arguments)


def test_files_that_are_named_exist(root, pages):
    page = (root / "docs/gpu/rtx3070.md").read_text()
    assert default_file({"gpu": "NVIDIA GeForce RTX 3070", "dtype": "float16"}).name in page
    for name in re.findall(r"(?:benchmarks|kernels|tests|docs)/[\w./]+\.(?:sh|py|ipynb)|kernels/\w+\.json", page):
        assert (root / name).exists(), name
    for name in re.findall(r"tests/gpu/[\w.]+::(\w+)", pages["session"]):
        files = "".join(file.read_text() for file in (root / "tests/gpu").glob("test_*.py"))
        assert f"def {name}(" in files


def test_the_page_names_the_targets_that_are_judged(root):
    """A bound that the page shows and the benchmark does not have would be a promise to nobody."""
    class Half:
        flops = dict.fromkeys((f"{name}, cuda" for name in ("half", "lean", "found")), 0.5)

    rows: dict[str, Row] = {row.name: row for row in rows_of(Half, "cuda", True)}
    page = (root / "docs/gpu/rtx3070.md").read_text()
    for line, name in (("half, lean and found vs D", "lean vs D"), ("half vs C", "half vs C"),
                       ("mixed vs half (time)", "mixed vs half"), ("edges50 vs E", "edges50 vs E"),
                       ("full vs D", "full vs D")):
        cells = re.search(rf"^\| {re.escape(line)} \| (.+) \| (.+) \|$", page, re.M).groups()
        for batch, cell in zip(BATCHES, cells, strict=True):
            scale = 2.0 if " S" in cell else 1.0
            bound = [scale * float(number) for number in re.findall(r"\d+\.\d+", cell)]
            assert bound == [value for value in rows[name].bounds[batch] if value is not None]


def test_the_session_goes_on_when_a_part_fails(root, tmp_path):
    """With an interpreter that fails at everything but ``vitsparse doctor``."""
    ops = [file.stem.removeprefix("test_") for file in (root / "benchmarks/ops").glob("test_*.py")]
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *doctor*) echo fine;; *) echo broken; exit 3;; esac\n')
    python.chmod(0o755)
    done = subprocess.run([root / "benchmarks/gpu_session.sh", tmp_path / "out", "tests", "doctor", "ops"],
                          env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)}, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 1
    summary = (tmp_path / "out/summary.txt").read_text()
    assert [line.split(" in ")[0].split(" after ")[0] for line in summary.splitlines()] == [
        "doctor: passed", "tests: FAILED with status 3",
        *(f"ops-{op}: FAILED with status 3" for op in sorted(ops))]
    assert (tmp_path / "out/session.log").read_text().count("broken") == 1 + len(ops)


def test_doctor_needs_no_optional_package():
    program = """if True:
        import sys
        sys.modules.update(dict.fromkeys(("tyro", "pydantic")))
        from vitsparse.cli import main
        sys.exit(main(["doctor"]))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
