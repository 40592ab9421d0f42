"""measure: order, counts and quantiles on a clock of our own; the facts about the machine."""

from __future__ import annotations

import json
import time

import pytest
import torch

import vitsparse.evaluation.latency as latency
from vitsparse.errors import InputError


class Clock:
    """A clock that only moves when told."""

    def __init__(self):
        self.nanoseconds = 0

    def perf_counter_ns(self):
        return self.nanoseconds

    def perf_counter(self):
        return self.nanoseconds / 1e9

    def sleep(self, seconds):
        self.nanoseconds += int(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def taking(clock, calls, name, milliseconds):
    """A function that moves the clock by the next of ``milliseconds`` (its last one for ever)."""
    left = list(milliseconds)

    def function():
        calls.append(name)
        clock.nanoseconds += int((left.pop(0) if len(left) > 1 else left[0]) * 1e6)

    return function


def test_candidates_take_turns_and_the_first_one_changes(clock):
    calls = []
    functions = {name: taking(clock, calls, name, [1]) for name in "abc"}
    latency.measure(functions, warmup=2, repeats=4, min_seconds=0, pause=0)
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"


def test_candidates_rest_on_a_cpu_before_each_call(clock):
    calls = []
    latency.measure({"a": taking(clock, calls, "a", [4])}, warmup=0, repeats=2, min_seconds=0)
    assert calls == ["a"] * 2 * (1 + 3)  # calls of 4 ms fill 10


def test_quantiles_are_of_the_calls_after_warm_up(clock):
    functions = {"a": taking(clock, [], "a", [500, *range(1, 12)]), "b": taking(clock, [], "b", [7])}
    found = latency.measure(functions, warmup=1, repeats=11, min_seconds=0, pause=0)
    assert found == {"a": latency.Latency(3.0, 6.0, 9.0, 11), "b": latency.Latency(7.0, 7.0, 7.0, 11)}


def test_rounds_keep_their_order_for_ratios_within_one(clock):
    functions = {"a": taking(clock, [], "a", [9, 1, 2, 4]), "b": taking(clock, [], "b", [9, 3, 6, 12])}
    found = latency.measure_rounds(functions, warmup=1, repeats=3, min_seconds=0)
    assert (found["b"] / found["a"]).tolist() == [3, 3, 3]
    assert found["a"].tolist() == [1, 2, 4]


def test_a_pause_is_filled_with_calls_where_they_are_shorter_and_does_not_count(clock):
    calls = []
    functions = {"short": taking(clock, calls, "s", [4]), "long": taking(clock, calls, "l", [30])}
    found = latency.measure_rounds(functions, warmup=0, repeats=2, min_seconds=0, pause=0.01)
    assert "".join(calls) == "ssss" + "ll" + "l" + "ssss"  # before the first call nobody knows how long one takes
    assert {name: times.tolist() for name, times in found.items()} == {"short": [4, 4], "long": [30, 30]}


def test_rounds_go_on_until_enough_time_has_passed(clock):
    functions = {"a": taking(clock, [], "a", [10]), "b": taking(clock, [], "b", [30])}
    found = latency.measure(functions, warmup=0, repeats=3, min_seconds=0.1, pause=0)
    assert found["a"].n == found["b"].n == 5  # 0.2 s for both, 0.04 s a round
    assert latency.measure(functions, warmup=0, repeats=8, min_seconds=0.1)["a"].n == 8


def test_real_time_is_in_milliseconds():
    found = latency.measure({"sleep": lambda: time.sleep(0.005), "nothing": lambda: None}, warmup=1, repeats=5,
                            min_seconds=0)
    assert 5 <= found["sleep"].p20 <= found["sleep"].p50 <= found["sleep"].p80
    assert found["nothing"].p50 < 1


@pytest.mark.parametrize("arguments", [{"functions": {}}, {"repeats": 0}, {"warmup": -1}, {"min_seconds": -1},
                                       {"pause": -1}])
def test_nothing_to_measure_is_refused(arguments):
    with pytest.raises(InputError, match="nothing to measure"):
        latency.measure_rounds(**({"functions": {"a": int}} | arguments))


def test_machine_facts_are_json_and_name_the_machine():
    facts = json.loads(json.dumps(latency.machine_facts()))
    assert facts["torch"] == torch.__version__
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["threads"] == torch.get_num_threads()
    assert (facts["gpu"] is not None) == torch.cuda.is_available()
    assert facts["date"].endswith("+00:00")


def test_commit_is_none_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "__file__", str(tmp_path / "vitsparse" / "evaluation" / "latency.py"))
    assert latency.git_commit() is None
    (tmp_path / ".git").mkdir()
    assert latency.git_commit() is None


@pytest.mark.gpu
def test_gpu_time_covers_the_work_not_only_its_launch():
    wide = torch.randn(8192, 8192, device="cuda")
    functions = {"many": lambda: [wide @ wide for _ in range(4)], "one": lambda: wide @ wide}
    found = latency.measure_rounds(functions, warmup=3, repeats=20, min_seconds=0, device="cuda")
    assert 2 < min(found["many"]) / min(found["one"]) < 6
