"""The facts of ``doctor`` are complete, plain, and honest about the GPU."""

from __future__ import annotations

import json

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
    ("aaa", "current", "passed their tests on a card, 2026-01-02"),
    ("bbb", "outdated", "have changed since"),
])
def test_gpu_verification(monkeypatch, verified, state, says):
    monkeypatch.setattr(native, "build_facts", lambda: {
        "gpu_sources": "aaa", "verified_sources": verified, "verified_gpu": "a card", "verified_date": "2026-01-02"})
    result = facts.collect()["gpu_verification"]
    assert result["state"] == state
    assert says in result["text"]


def test_every_reason_against_triton_is_given(monkeypatch):
    monkeypatch.setattr(triton.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(triton.torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert triton.why_not() == ["triton is not installed", "torch finds no CUDA device"]


def test_the_gpu_must_be_new_enough(monkeypatch):
    for module in (triton, native):
        monkeypatch.setattr(module.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(native.torch.version, "cuda", "13.0")
    monkeypatch.setattr(native.torch.cuda, "get_device_capability", lambda: (7, 0))
    assert "7.0, and 7.5 is the least" in native.why_not("cuda")[0]
    assert "below compute capability 8.0" in triton.why_not()[-1]


def test_a_library_that_does_not_load_says_why(monkeypatch, tmp_path):
    broken = tmp_path / "libvitsparse_cpu.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native, "path", lambda library: broken)
    monkeypatch.setattr(native, "_load_failures", {})
    assert native.why_not("cpu")[0].startswith("libvitsparse_cpu.so does not load: ")
    with pytest.raises(ValueError, match="no native library"):
        native.why_not("cpuu")
