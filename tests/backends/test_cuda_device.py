"""Why the CUDA ops cannot run: each reason names its cause and what to do. The facts are faked; no GPU is needed."""

from __future__ import annotations

import pytest
import torch

from vitsparse.backends import cuda_device, native

DEFAULT = "75-real;86-real;90"
BUILT = {"cuda_ops": True, "cuda_compiler": "13.0.88", "cuda_architectures": DEFAULT, "gpu_sources": "aaa"}


@pytest.fixture
def machine(monkeypatch):
    """``machine(capability, driver, **facts)``: a torch for CUDA 13.0 on such a device, and a build of such facts."""

    def fake(capability=(8, 6), driver=(13, 0), **built):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(cuda_device, "driver", lambda: driver)
        monkeypatch.setattr(native, "build_facts", lambda: {**BUILT, **built})
        monkeypatch.setattr(native, "_load_failures", {})

    return fake


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A file in the library's place, and what ``load_library`` was asked to load."""
    file, loaded = tmp_path / "libvitsparse_cuda.so", []
    file.touch()
    monkeypatch.setattr(native, "path", lambda name: file)
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(native, "_sources_in", lambda path: "aaa")
    return loaded


@pytest.mark.parametrize(("capability", "architectures", "code"), [
    ((7, 5), DEFAULT, "machine code"), ((8, 6), DEFAULT, "machine code"), ((8, 9), DEFAULT, "machine code"),
    ((9, 0), DEFAULT, "machine code"), ((12, 0), DEFAULT, "PTX"), ((8, 0), DEFAULT, None), ((8, 7), DEFAULT, None),
    ((8, 0), "80", "machine code"), ((8, 6), "80-real", "machine code"), ((8, 7), "80", "PTX"),
    ((8, 7), "87-real", "machine code"), ((8, 9), "87-real", None), ((9, 0), "90a-real", "machine code"),
    ((10, 0), "90a", None), ((8, 6), "80-virtual", "PTX"), ((8, 6), "75-virtual;86-real", "machine code"),
    ((7, 5), "", None),
])
def test_the_code_for_a_device_follows_cuda_s_rules(capability, architectures, code):
    assert cuda_device.code_for(capability, architectures) == code


@pytest.mark.parametrize(("capability", "level"), [
    ((7, 5), 75), ((8, 0), 80), ((8, 9), 80), ((9, 0), 90), ((12, 0), 80),
])
def test_the_level_is_the_highest_that_the_device_has(capability, level):
    assert cuda_device.level(capability) == level


def test_nothing_speaks_against_a_device_that_was_built_for(machine, library):
    machine()
    assert native.why_not("cuda") == []
    assert len(library) == 1
    assert native.why_not("cuda") == []
    assert len(library) == 1  # loaded once


@pytest.mark.parametrize(("facts", "cause", "remedy"), [
    ({"capability": (7, 0)}, "has compute capability 7.0", "7.5 is the least supported"),
    ({"capability": (8, 0)}, "neither machine code nor PTX for compute capability 8.0 (it is for 75-real, 86-real, 90)",
     "VITSPARSE_CUDA_ARCHS=80 pip install ."),
    ({"driver": (12, 4)}, "the driver is too old for this build: it knows CUDA up to 12.4, and nvcc was 13.0",
     "update the driver, or build with an nvcc of CUDA 12"),
    ({"capability": (12, 0), "cuda_compiler": "13.2.1"}, "knows CUDA up to 13.0 and cannot compile PTX of 13.2",
     "VITSPARSE_CUDA_ARCHS=120 pip install ."),
    ({"capability": None, "driver": None}, "torch finds no CUDA device", "no NVIDIA driver is installed"),
    ({"capability": None, "driver": (12, 2)}, "the driver is too old for this torch: it knows CUDA up to 12.2",
     "update the driver, or install a torch for CUDA 12"),
    ({"capability": None}, "torch finds no CUDA device", ""),
])
def test_device_driver_and_build_must_fit(machine, library, facts, cause, remedy):
    machine(**facts)
    (reason,) = native.why_not("cuda")
    assert cause in reason
    assert remedy in reason
    assert library == []


def test_a_newer_driver_of_another_year_runs_what_was_built(machine, library):
    machine(driver=(14, 1))
    assert native.why_not("cuda") == []


def test_machine_code_runs_on_an_older_driver_of_the_same_year(machine, library):
    machine(cuda_compiler="13.2.1")
    assert native.why_not("cuda") == []


def test_a_torch_without_cuda_is_named(machine, library, monkeypatch):
    machine()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA: install one with it" in native.why_not("cuda")[0]


@pytest.mark.parametrize("sources", ["bbb", None])
def test_a_library_left_over_from_another_build_is_not_used(machine, library, monkeypatch, sources):
    machine()
    monkeypatch.setattr(native, "_sources_in", lambda path: sources)
    (reason,) = native.why_not("cuda")
    assert "is of another build than the rest: run `pip install .`" in reason


def test_a_missing_half_is_named(machine, library, monkeypatch, tmp_path):
    machine()
    monkeypatch.setattr(native, "path", lambda name: tmp_path / "libvitsparse_absent.so")
    assert "libvitsparse_absent.so is missing: the native parts are half built: run" in native.why_not("cuda")[0]
    machine()
    monkeypatch.setattr(native, "build_facts", dict)
    assert "is missing: the native parts are not built" in native.why_not("cuda")[0]


def test_the_other_missing_half_is_named(machine, library, monkeypatch):
    machine()
    monkeypatch.setattr(native, "build_facts", dict)
    assert "vitsparse._core does not import, so the native parts are half built: run" in native.why_not("cuda")[0]


def test_the_built_library_names_the_sources_of_its_build():
    if not native.build_facts().get("cuda_ops"):
        pytest.skip(f"the CUDA ops are not built: {native.build_facts().get('why_no_cuda_ops', 'nothing is built')}")
    assert native._sources_in(native.path("cuda")) == native.build_facts()["gpu_sources"]


def test_another_library_names_none():
    assert native._sources_in(native.path("cpu")) is None


def test_the_driver_is_asked_through_its_library(monkeypatch):
    class Library:
        @staticmethod
        def cuDriverGetVersion(pointer):
            pointer._obj.value = 12040
            return 0

    monkeypatch.setattr(cuda_device.ctypes, "CDLL", lambda name: Library)
    assert cuda_device.driver.__wrapped__() == (12, 4)
    monkeypatch.setattr(Library, "cuDriverGetVersion", lambda pointer: 999)
    assert cuda_device.driver.__wrapped__() is None
