"""CUDA graphs, the clock and the facts of a GPU: on a card of our own here, on a real one with `-m gpu`."""

from __future__ import annotations

import subprocess
import types

import pytest
import torch

import vitsparse.evaluation.gpu as gpu
from vitsparse.evaluation.latency import measure_rounds


class Card:
    """What the module uses of ``torch.cuda``; work takes as long as :meth:`work` says, its order is written down."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def work(self, name, milliseconds):
        self.log.append(name)
        self.now += milliseconds

    def event(self, enable_timing):
        assert enable_timing
        event = types.SimpleNamespace(at=None, synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: end.at - event.at
        return event


@pytest.fixture
def card(monkeypatch):
    card = Card()
    monkeypatch.setattr(torch.cuda, "Event", card.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu, "flush_l2", lambda: card.work("flush", 100))
    return card


def test_a_cold_call_is_timed_behind_the_flush_not_with_it(card):
    assert gpu.CudaClock()(lambda: card.work("call", 3)) == 3
    assert card.log == ["flush", "call"]


def test_warm_calls_are_averaged(card):
    assert gpu.CudaClock(cold=False, calls=4)(lambda: card.work("call", 3)) == 3
    assert card.log == ["call"] * 4


def test_candidates_take_turns_on_this_clock(card):
    functions = {"a": lambda: card.work("a", 1), "b": lambda: card.work("b", 2)}
    found = measure_rounds(functions, warmup=0, repeats=2, min_seconds=0, clock=gpu.CudaClock())
    assert {name: times.tolist() for name, times in found.items()} == {"a": [1, 1], "b": [2, 2]}
    assert card.log == ["flush", "a", "flush", "b", "flush", "b", "flush", "a"]


@pytest.mark.parametrize(("answer", "driver", "clock"), [
    ("580.159.03, 1980, 3201, 1980, 700.00, 41\n", "580.159.03", 1980.0),
    ("580.159.03, [N/A], [N/A], [N/A], [N/A], 41\n", "580.159.03", None),
    ("No devices were found\n", None, None),
    (OSError("there is no nvidia-smi"), None, None),
])
def test_facts_that_cannot_be_read_are_none(monkeypatch, answer, driver, clock):
    properties = types.SimpleNamespace(uuid="1-2", name="a card", major=7, minor=5, multi_processor_count=40,
                                       L2_cache_size=4, total_memory=5)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    def run(command, **_):
        assert "--id=GPU-1-2" in command
        if isinstance(answer, OSError):
            raise answer
        return types.SimpleNamespace(stdout=answer)

    monkeypatch.setattr(subprocess, "run", run)
    facts = gpu.gpu_facts()
    assert (facts["gpu"], facts["capability"], facts["driver"], facts["clock_mhz"]) == ("a card", "7.5", driver, clock)


@pytest.mark.gpu
def test_a_captured_function_follows_its_inputs_and_keeps_its_output():
    weight, images = torch.randn(64, 64, device="cuda"), torch.randn(8, 64, device="cuda")
    run = gpu.captured(lambda x: (x @ weight).relu(), images)
    assert torch.equal(run(), (images @ weight).relu())
    other = torch.randn_like(images)
    run.inputs[0].copy_(other)
    assert torch.equal(run(), (other @ weight).relu())
    assert run() is run.output


@pytest.mark.gpu
def test_the_clock_of_a_real_card():
    """Twice the work takes about twice as long; a cold pass over 4 MB that fit the cache is not faster than warm."""
    wide, small = torch.randn(8192, 8192, device="cuda"), torch.randn(2**20, device="cuda")
    one, two = gpu.captured(lambda: wide @ wide), gpu.captured(lambda: wide @ wide @ wide)
    times = measure_rounds({"one": one, "two": two}, repeats=10, min_seconds=0, clock=gpu.CudaClock())
    assert 1.5 < min(times["two"]) / min(times["one"]) < 2.5
    add = gpu.captured(lambda: small + 1)
    cold = measure_rounds({"add": add}, repeats=20, min_seconds=0, clock=gpu.CudaClock())["add"]
    warm = measure_rounds({"add": add}, repeats=20, min_seconds=0, clock=gpu.CudaClock(cold=False, calls=20))["add"]
    assert min(warm) < min(cold) * 1.1
    assert gpu.gpu_facts()["gpu"] == torch.cuda.get_device_name()
