"""The floors: who may import whom, and how large things may grow. Every failure names the offending line."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vitsparse"

# A module imports from floors below its own and from its own folder, so siblings on one floor are blind to each other.
FLOORS = {
    "errors": -1, "version": -1,  # below everything
    "circuit": 0,
    "backends": 1,
    "model": 2, "data": 2, "ops": 2,
    "evaluation": 3,
    "discovery": 4, "compiler": 4, "training": 4,
    "analysis": 5,
    "report": 6,
    "__init__": 7,  # the names of `import vitsparse`
    "cli": 8,
    "__main__": 9,
}
CORE = {"torch", "numpy", "safetensors", "einops", "tqdm", "PIL", "yaml"}  # what any module may import at its head
FLOOR_0 = {"numpy", "safetensors"}
CLI = {"tyro", "pydantic"}
BUILT = {"_core", "_triton"}

MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 400, 40, 7
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The folder (or single module) of the package that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, absolute dotted name, whether it runs when the module is imported) for every import in a file."""
    tree = ast.parse(path.read_text(), str(path))
    later = {id(inner) for outer in ast.walk(tree) if isinstance(outer, FUNCTIONS) or is_type_checking(outer)
             for inner in ast.walk(outer)}
    package = ["vitsparse", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(tree):
        at_head = id(node) not in later
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, at_head) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = package[:len(package) - node.level + 1] if node.level else []
            base = ".".join([*prefix, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}", at_head) for alias in node.names)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def complaint(path: Path, line: int, text: str) -> str:
    return f"{path.relative_to(ROOT)}:{line}: {text}\n    {path.read_text().splitlines()[line - 1].strip()}"


def test_every_module_has_a_floor():
    assert sorted({part_of(path) for path in modules()} - FLOORS.keys()) == []


def test_imports_go_down():
    wrong = []
    for path in modules():
        own = part_of(path)
        for line, name, _ in imports_of(path):
            top, *rest = name.split(".")
            if top != "vitsparse" or (rest and rest[0] in (own, *BUILT)):
                continue
            other = rest[0] if rest and rest[0] in FLOORS else "__init__"  # such as __version__
            if FLOORS[other] >= FLOORS[own]:
                text = f"{own} (floor {FLOORS[own]}) imports {other} (floor {FLOORS[other]})"
                wrong.append(complaint(path, line, text))
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_only_where_they_are_used():
    wrong = []
    for path in modules():
        own = part_of(path)
        allowed = FLOOR_0 if FLOORS[own] <= 0 else CORE | CLI if own == "cli" else CORE
        for line, name, at_head in imports_of(path):
            top = name.split(".")[0]
            known = top in sys.stdlib_module_names or top == "vitsparse"
            if (at_head and not known and top not in allowed) or (FLOORS[own] <= 0 and top == "torch"):
                wrong.append(complaint(path, line, f"{own} must not import {top} at its head"))
    assert not wrong, "\n".join(wrong)


def test_only_backends_touch_the_native_parts():
    wrong = [complaint(path, line, f"only vitsparse/backends may import {name}")
             for path in modules() if part_of(path) != "backends"
             for line, name, _ in imports_of(path) if re.match(r"vitsparse\.(_core|_triton)\b", name)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("folder", "forbidden"), [
    ("kernels", r"torch/|ATen/|c10/|pybind11|Python\.h|csrc/"),
    ("csrc", r"ATen/|c10/|torch/(?!csrc/stable/|headeronly/|csrc/inductor/aoti_torch/c/)"),
])
def test_native_includes_go_down(folder, forbidden):
    """kernels know no torch and no binding; bindings know only torch's stable ABI."""
    wrong = [complaint(path, number, "forbidden include")
             for path in native_sources(folder) for number, line in enumerate(path.read_text().splitlines(), 1)
             if re.match(rf'\s*#\s*include\s*[<"].*({forbidden})', line)]
    assert not wrong, "\n".join(wrong)


def test_the_kernels_folder_is_no_package():
    """``kernels/__init__.py`` would shadow a package of that name for everybody who starts Python here."""
    assert not (ROOT / "kernels/__init__.py").exists()


def test_files_are_short():
    files = [*python_sources(), *native_sources("kernels"), *native_sources("csrc")]
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}
    assert not {f"{path}: {length} lines" for path, length in lengths.items() if length >= MAX_FILE}


def test_functions_are_short_and_take_few_parameters():
    wrong = []
    for path in python_sources():
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, FUNCTIONS):
                if (length := length_of(node)) >= MAX_FUNCTION:
                    wrong.append(complaint(path, node.lineno, f"{length} lines, at most {MAX_FUNCTION - 1}"))
                excused = is_triton_kernel(node) or "noqa: PLR0913" in path.read_text().splitlines()[node.lineno - 1]
                if (count := parameters_of(node)) > MAX_PARAMETERS and not excused:
                    wrong.append(complaint(path, node.lineno, f"{count} parameters, at most {MAX_PARAMETERS}"))
    assert not wrong, "\n".join(wrong)


def python_sources() -> list[Path]:
    folders = [PACKAGE, ROOT / "kernels", ROOT / "tests", ROOT / "benchmarks", ROOT / "experiments"]
    return [ROOT / "setup.py", *sorted(path for folder in folders for path in folder.rglob("*.py"))]


def native_sources(folder: str) -> list[Path]:
    return sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))


def length_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the end, the docstring not counted: explaining is free."""
    first = node.body[0]
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
    return node.end_lineno - node.lineno + 1 - docstring


def parameters_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def is_triton_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Triton kernels take pointers and strides one by one; there is no struct to pass."""
    return any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize(("source", "name"), [
    ("from ..model import vit", "vitsparse.model.vit"),
    ("from . import graph", "vitsparse.circuit.graph"),
    ("from .. import __version__", "vitsparse.__version__"),
    ("import torch.nn", "torch.nn"),
])
def test_relative_imports_are_resolved(source, name, monkeypatch, tmp_path):
    """The checks above are only as good as this: each form of import gives its absolute name."""
    monkeypatch.setattr("tests.test_architecture.PACKAGE", tmp_path)
    module = tmp_path / "circuit" / "module.py"
    module.parent.mkdir()
    module.write_text(source)
    assert [found for _, found, _ in imports_of(module)] == [name]
