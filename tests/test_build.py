"""What the native build makes and what it does without torch, without nvcc, and for another processor."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from vitsparse.backends import native

SOURCES = Path(__file__).resolve().parent.parent
needs_sources = pytest.mark.usefixtures("root")
needs_binutils = pytest.mark.skipif(not (shutil.which("readelf") and shutil.which("nm")), reason="binutils missing")
built = native.build_facts()


def libraries() -> list[Path]:
    return [native.path(name) for name in native.LIBRARIES if built.get(f"{name}_ops")]


def needed(path: Path) -> set[str]:
    text = subprocess.run(["readelf", "--dynamic", path], capture_output=True, text=True, check=True).stdout
    assert "RPATH" not in text
    assert "RUNPATH" not in text
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", text))


def test_the_native_parts_are_built_and_load():
    assert built, "vitsparse._core does not import"
    assert built["cuda_ops"] or built["why_no_cuda_ops"]
    # Tests of kernels skip without the CPU ops, so this one must fail: else a build that broke would look green.
    assert not native.why_not("cpu")


def test_what_is_built_for_cuda_includes_the_oldest_card_as_machine_code():
    if not built["cuda_ops"]:
        pytest.skip(built["why_no_cuda_ops"])
    assert built["cuda_architectures"].split(";") == ["75-real", "86-real", "90"]


@needs_binutils
def test_the_python_module_needs_no_torch():
    assert not [name for name in needed(Path(native.core().__file__)) if "torch" in name or "c10" in name]


@needs_binutils
def test_the_op_libraries_use_only_the_stable_abi():
    """No symbol of torch's C++ interface, which changes from release to release; no Python; no CUDA runtime to find."""
    for path in libraries():
        text = subprocess.run(["nm", "--dynamic", "--undefined-only", "--demangle", path],
                              capture_output=True, text=True, check=True).stdout
        assert not re.findall(r" U (?:at|c10|torch|caffe2)::.*| U Py\w+| U cuda\w+", text)
        cuda = {"libtorch_cuda.so"} if "cuda" in path.name else {"libtorch_cpu.so"}
        assert cuda <= needed(path)
        assert not [name for name in needed(path) if re.match(r"lib(c10|torch_python|python|cudart)", name)]


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """Configure with nothing but a C++ compiler, for a processor of another make; compiles nothing."""
    cmake, pybind11 = pytest.importorskip("cmake"), pytest.importorskip("pybind11")
    folder = tmp_path_factory.mktemp("configured")
    if not (SOURCES / "CMakeLists.txt").is_file():
        pytest.skip("the source tree is not here")

    def configure(processor: str, **settings: object) -> Path:
        build = folder / "-".join([processor, *settings])
        subprocess.run([Path(cmake.CMAKE_BIN_DIR) / "cmake", "-S", SOURCES, "-B", build, "-DCMAKE_BUILD_TYPE=Release",
                        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                        "-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={processor}",
                        *(f"-D{name}={value}" for name, value in settings.items())],
                       check=True, capture_output=True, text=True, timeout=120)
        return build

    return configure


def commands(build: Path) -> dict[str, str]:
    return {entry["file"].removeprefix(f"{SOURCES}/"): entry["command"]
            for entry in json.loads((build / "compile_commands.json").read_text())}


def test_without_torch_the_rest_is_built_and_the_reason_is_kept(configured):
    build = configured("x86_64")
    assert "csrc/core.cpp" in commands(build)
    assert "csrc/cpu/noop.cpp" not in commands(build)
    facts = (build / "generated/build_facts.h").read_text()
    assert re.search(r'kWhyNoCpuOps\[\] = "torch was not found', facts)
    assert re.search(r'kWhyNoCudaOps\[\] = "torch was not found', facts)


def test_a_compiler_that_does_not_work_costs_only_the_cuda_ops(configured, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    build = configured("x86_64", VITSPARSE_NVCC=nvcc, VITSPARSE_TORCH_DIR=Path(torch.__file__).parent)
    assert "csrc/cpu/noop.cpp" in commands(build)
    facts = (build / "generated/build_facts.h").read_text()
    assert f'kWhyNoCudaOps[] = "{nvcc} cannot compile here' in facts
    assert 'kCudaOps[] = ""' in facts


def test_wide_instructions_stay_in_the_files_named_after_them(configured):
    for name, command in commands(configured("x86_64")).items():
        assert "-march=native" not in command
        assert ("-mavx512f" in command) == name.endswith("_avx512.cpp"), name
        assert ("-mavx2" in command) == name.endswith(("_avx512.cpp", "_avx2.cpp")), name


def test_another_processor_builds_without_them(configured):
    other = commands(configured("aarch64"))
    assert "kernels/cpu/noop.cpp" in other
    assert not [name for name, command in other.items() if "_avx" in name or "-mavx" in command]


def test_cuda_kernels_are_compiled_for_the_architectures_of_their_level(root):
    if not built.get("cuda_ops"):
        pytest.skip(built.get("why_no_cuda_ops", "nothing is built"))
    (build,) = (root / "build").glob(f"native-*-{sys.implementation.cache_tag}")
    all_of_them = ["compute_75,code=[sm_75]", "compute_86,code=[sm_86]", "compute_90,code=[compute_90,sm_90]"]
    expected = {"80": all_of_them[1:], "90": ["compute_90a,code=[sm_90a]"]}
    assert cuda_targets(build) == {name: expected.get(level, all_of_them) for name, level in cuda_levels(root)}


def test_a_level_without_architecture_is_kept_as_ptx(configured, root):
    """So that the dispatch, which names every level, links."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    build = configured("x86_64", VITSPARSE_NVCC=nvcc, VITSPARSE_CUDA="on", CMAKE_CUDA_ARCHITECTURES="75-real",
                       VITSPARSE_TORCH_DIR=Path(torch.__file__).parent)
    expected = {"80": ["compute_80,code=[compute_80]"], "90": ["compute_90a,code=[compute_90a]"]}
    assert cuda_targets(build) == {name: expected.get(level, ["compute_75,code=[sm_75]"])
                                   for name, level in cuda_levels(root)}


def cuda_levels(root: Path) -> list[tuple[str, str]]:
    """(file, level in its name or an empty string) of every CUDA kernel."""
    files = sorted((root / "kernels/cuda").glob("*.cu"))
    return [(f"kernels/cuda/{file.name}", (re.search(r"_sm(\d+)$", file.stem) or ["", ""])[1]) for file in files]


def cuda_targets(build: Path) -> dict[str, list[str]]:
    """What each CUDA kernel is compiled for."""
    return {name: sorted(re.findall(r"--generate-code=arch=(\S+?\])", command))
            for name, command in commands(build).items() if name.endswith(".cu")}


def test_the_digest_of_the_gpu_sources_covers_all_of_them(root, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    digest = runpy.run_path(str(root / "setup.py"))["gpu_sources"]
    monkeypatch.setitem(digest.__globals__, "ROOT", tmp_path)
    for folder in ("kernels/common", "kernels/cuda", "kernels/triton", "csrc/cuda"):
        shutil.copytree(root / folder, tmp_path / folder)
    sources = [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    digests = {digest()}
    for path in sources:
        path.write_text(path.read_text() + "\n")
        digests.add(digest())
    assert len(digests) == len(sources) + 1


@needs_binutils
def test_wide_kernels_share_no_inline_function_with_the_rest(root):
    """The linker keeps one copy of a shared inline function: were it the wide one, an older processor would crash."""
    objects = sorted((root / "build").glob("native-*/CMakeFiles/vitsparse_kernels.dir/**/*_avx*.o"))
    if not objects:
        pytest.skip("the build folder is not here")
    text = subprocess.run(["nm", "--demangle", "--defined-only", *objects], capture_output=True, text=True, check=True)
    assert not re.findall(r"^\w+ [WVu] .*$", text.stdout, flags=re.M)


@needs_sources
def test_a_wheel_holds_all_parts(root, tmp_path):
    """Uses the objects of the build folder, so that it takes seconds."""
    subprocess.run([sys.executable, "setup.py", "--quiet", "build", "--build-base", tmp_path / "build", "bdist_wheel",
                    "--bdist-dir", tmp_path / "bdist", "--dist-dir", tmp_path], cwd=root, check=True, timeout=240,
                   capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"vitsparse/py.typed", "vitsparse/model/pretrained.json", "vitsparse/_triton/noop.py",
            *(f"vitsparse/{path.name}" for path in libraries()), f"vitsparse/{Path(native.core().__file__).name}"
            } <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"vitsparse"}


@needs_sources
@pytest.mark.parametrize("setting", ["VITSPARSE_CUDA=maybe", "VITSPARSE_TORCH_DIR=/nowhere", "VITSPARSE_CUDA_ARCHS=8.6",
                                     "VITSPARSE_CUDA_ARCHS=75;70"])
def test_a_wrong_setting_is_named(root, setting, tmp_path):
    name, value = setting.split("=")
    done = subprocess.run([sys.executable, "setup.py", "--quiet", "build_ext", "--build-temp", str(tmp_path)], cwd=root,
                          env={name: value, "PATH": ""}, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert f"{name}={value}" in done.stderr
