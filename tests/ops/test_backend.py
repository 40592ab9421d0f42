"""Which backend runs: a name is honoured, or refused with every reason; ``auto`` takes the first that can."""

from __future__ import annotations

import logging

import pytest

from vitsparse.backends import native
from vitsparse.errors import InputError
from vitsparse.ops import backend


@pytest.fixture(autouse=True)
def _fresh_announcements(monkeypatch):
    monkeypatch.setattr(backend, "_announced", set())


@pytest.fixture
def no_cpu_ops(monkeypatch):
    monkeypatch.setattr(native, "why_not", lambda library: ["first reason", "second reason"])


def test_auto_prefers_the_native_ops(monkeypatch):
    monkeypatch.setattr(native, "why_not", lambda library: [])
    assert backend.choose("auto", "cpu") == "cpu"


def test_auto_falls_back_and_says_so_once(no_cpu_ops, caplog):
    with caplog.at_level(logging.INFO, "vitsparse"):
        assert backend.choose("auto", "cpu") == "torch"
        assert backend.choose("auto", "cpu") == "torch"
    assert [record.getMessage() for record in caplog.records] == [
        "backend 'torch' for cpu tensors; not cpu: first reason, second reason"]
    assert caplog.records[0].levelno == logging.WARNING


def test_auto_passes_over_what_is_not_offered():
    assert backend.choose("auto", "cpu", offered=("reference",)) == "reference"


def test_a_name_is_refused_with_every_reason(no_cpu_ops):
    with pytest.raises(InputError, match="first reason; second reason"):
        backend.choose("cpu", "cpu")
    with pytest.raises(InputError, match=r"it is not implemented for this \(torch are\).*first reason"):
        backend.choose("cpu", "cpu", offered=("torch",))


def test_a_name_is_never_replaced():
    for device in ("cpu", "cuda", "meta"):
        assert backend.choose("reference", device) == "reference"
    with pytest.raises(InputError, match="it runs on cpu tensors and these are on cuda"):
        backend.choose("cpu", "cuda")


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match="did you mean 'reference'"):
        backend.choose("referense", "cpu")


def test_nothing_can_run():
    with pytest.raises(InputError, match="it does not implement this"):
        backend.choose("auto", "cuda", offered=())
