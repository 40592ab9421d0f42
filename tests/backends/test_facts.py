"""The facts of ``doctor`` are complete, plain, and honest about the GPU."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from vitsparse.backends import facts, native, triton
from vitsparse.ops.backend import BACKENDS


def test_are_plain_json_and_name_every_backend():
    found = json.loads(json.dumps(facts.collect()))
    assert set(found["backends"]) == set(BACKENDS)
    for backend in found["backends"].values():
        assert backend["usable"] == (backend["why_not"] == [])
    assert found["backends"]["cuda"]["usable"] == native.available("cuda")
    assert found["machine"]["cpu_isa"] in ("scalar", "avx2", "avx512")


def test_a_package_that_is_absent_has_no_version(monkeypatch):
    monkeypatch.setattr(facts, "PACKAGES", ("vitsparse", "no-such-package"))
    versions = facts.collect()["versions"]
    assert versions["no-such-package"] is None
    assert versions["vitsparse"]


@pytest.mark.parametrize(("verified", "state", "says"), [
    ("", "never", "never been verified"),
    ("aaa", "current", "passed their tests on a card, 2026-01-02, levels 75, 80"),
    ("bbb", "outdated", "have changed since"),
])
def test_gpu_verification(monkeypatch, verified, state, says):
    monkeypatch.setattr(native, "build_facts", lambda: {
        "gpu_sources": "aaa", "verified_sources": verified, "verified_gpu": "a card", "verified_date": "2026-01-02",
        "verified_levels": "75, 80"})
    result = facts.collect()["gpu_verification"]
    assert result["state"] == state
    assert says in result["text"]


def test_every_reason_against_triton_is_given(monkeypatch):
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(triton.torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert triton.why_not() == ["triton is not installed", "torch finds no CUDA device"]


def test_triton_needs_ampere(monkeypatch):
    monkeypatch.setattr(triton.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton.torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "below compute capability 8.0" in triton.why_not()[-1]


def test_a_gpu_is_described_by_the_code_for_it(monkeypatch):
    monkeypatch.setattr(native, "build_facts", lambda: {"cuda_ops": True, "cuda_architectures": "75-real;86-real;90"})
    gpu = SimpleNamespace(name="A Card", major=8, minor=9, total_memory=1)
    assert facts._gpu(gpu) == {"name": "A Card", "capability": "8.9", "memory_bytes": 1, "cuda_level": 80,
                               "cuda_code": "machine code"}
    monkeypatch.setattr(native, "build_facts", dict)
    assert facts._gpu(gpu)["cuda_code"] is None


def test_a_library_that_does_not_load_says_why(monkeypatch, tmp_path):
    broken = tmp_path / "libvitsparse_cpu.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native, "path", lambda library: broken)
    monkeypatch.setattr(native, "_load_failures", {})
    assert native.why_not("cpu")[0].startswith("libvitsparse_cpu.so does not load: ")
    with pytest.raises(ValueError, match="no native library"):
        native.why_not("cpuu")
