"""Which graph a captured model replays, and when it records anew. What a GPU does is pretended; tests/gpu has one."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace

import pytest
import torch

from tests.compiler.cases import case_of
from vitsparse import InputError
from vitsparse.compiler import capture
from vitsparse.compiler.capture import Captured, Recording, record

IMAGES = torch.randn(3, 3, 8, 8)


class PretendedGraph:
    """Replays by calling."""

    def __init__(self, run, images, output):
        self.replay = torch.no_grad()(lambda: output.copy_(run(images)))


class Streams:
    """Notes who waits for whom."""

    def __init__(self):
        self.log: list[str] = []

    def wait_event(self, event):
        self.log.append("wait")

    def record_event(self, event):
        self.log.append("record")
        return "event"


@pytest.fixture
def recorded(monkeypatch):
    """The ways recorded so far, in order."""
    found: list[tuple[str, int]] = []

    def pretend(run, images, how):
        found.append((how, len(images)))
        kept = images.clone()
        output = run(kept).clone()
        return Recording(PretendedGraph(run, kept, output), kept, output, how)

    monkeypatch.setattr(capture, "record", pretend)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "device", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_, streams=Streams(): streams)  # noqa: B008
    return found


@pytest.fixture
def sparse():
    return case_of().sparse("torch").eval()


@torch.no_grad()
def test_one_recording_for_each_shape(sparse, recorded):
    captured = Captured(sparse, IMAGES)
    for images in (IMAGES, IMAGES + 1, IMAGES[:1], IMAGES[:1] + 1, IMAGES):
        torch.testing.assert_close(captured(images), sparse(images))
    assert recorded == [("steps", 3), ("steps", 1)]
    assert captured.input.shape == IMAGES.shape
    assert "3 (steps), 1 (steps)" in repr(captured)


@torch.no_grad()
def test_results_stay_when_the_graph_runs_again(sparse, recorded):
    captured = Captured(sparse, IMAGES)
    first = captured(IMAGES)
    kept = first.clone()
    captured(IMAGES + 1)
    assert torch.equal(first, kept)


@torch.no_grad()
def test_changed_parameters_are_recorded_anew(sparse, recorded):
    captured = Captured(sparse, IMAGES)
    sparse.head.weight.mul_(2)
    torch.testing.assert_close(captured(IMAGES), sparse(IMAGES))
    sparse.load_state_dict({key: value + 0.1 for key, value in sparse.state_dict().items()})
    torch.testing.assert_close(captured(IMAGES), sparse(IMAGES))
    assert len(recorded) == 3
    captured(IMAGES)
    assert len(recorded) == 3


@torch.no_grad()
def test_replay_runs_what_lies_in_the_input(sparse, recorded):
    captured = Captured(sparse, IMAGES)
    captured.input.copy_(IMAGES * 2)
    captured.replay()
    torch.testing.assert_close(captured.output, sparse(IMAGES * 2))


@torch.no_grad()
def test_calls_wait_for_each_other(sparse, recorded):
    captured = Captured(sparse, IMAGES)
    streams = torch.cuda.current_stream()
    streams.log.clear()
    captured(IMAGES)
    captured(IMAGES)
    assert streams.log[-3:] == ["record", "wait", "record"]


def test_images_that_require_gradients(sparse, recorded):
    with torch.no_grad():
        captured = Captured(sparse, IMAGES)
    assert not captured(IMAGES.clone().requires_grad_()).requires_grad
    assert not captured.input.requires_grad


def test_threads_do_not_disturb_each_other(sparse, recorded):
    captured, found = Captured(sparse, IMAGES), {}

    def call(position):
        for _ in range(20):
            found.setdefault(position, []).append(captured(IMAGES[:1 + position % 3] + position))

    threads = [threading.Thread(target=call, args=(position,)) for position in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for position, results in found.items():
        expected = sparse(IMAGES[:1 + position % 3] + position).detach()
        for result in results:
            torch.testing.assert_close(result.detach(), expected)


def test_of_several_ways_the_fastest_is_kept(sparse, recorded, monkeypatch):
    monkeypatch.setattr(type(sparse), "ways", lambda self, images: dict.fromkeys(("slow", "fast", "fair"), self))
    cost = {"slow": 3.0, "fast": 1.0, "fair": 2.0}
    monkeypatch.setattr(capture, "_milliseconds", lambda recording: cost[recording.how])
    with torch.no_grad():
        captured = Captured(sparse, IMAGES)
        assert captured.how == "fast"
        assert [how for how, _ in recorded] == ["slow", "fast", "fair"]
        assert Captured(sparse, IMAGES, "fair").how == "fair"


def test_ways_that_cannot_be_recorded_are_passed_over(sparse, recorded, monkeypatch):
    monkeypatch.setattr(type(sparse), "ways", lambda self, images: dict.fromkeys(("too big", "fits"), self))
    pretend = capture.record

    def refuse(run, images, how):
        if how == "too big":
            raise InputError("it does not fit", where=how)
        return pretend(run, images, how)

    monkeypatch.setattr(capture, "record", refuse)
    with torch.no_grad():
        assert Captured(sparse, IMAGES).how == "fits"
        with pytest.raises(InputError, match="it does not fit"):
            Captured(sparse, IMAGES, "too big")


def test_bad_arguments(sparse, recorded):
    with pytest.raises(InputError, match="expected: auto or steps"):
        Captured(sparse, IMAGES, "waves")
    with pytest.raises(InputError, match="a tensor on cuda"):
        sparse.capture(IMAGES)
    with pytest.raises(InputError, match="eval"):
        sparse.train().capture(IMAGES)
    with pytest.raises(InputError, match=r"\[B, 3, 8, 8\]"):
        Captured(sparse.eval(), torch.zeros(1, 3, 9, 9))


@pytest.fixture
def streams(monkeypatch):
    """torch.cuda without a GPU: the streams that were set."""
    found: list[object] = []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "set_stream", found.append)
    return found


def test_what_is_recorded_in_inference_mode_serves_outside(streams):
    with torch.inference_mode():
        recording = record(torch.neg, IMAGES + 0, "steps")
    recording.input.copy_(IMAGES)


@pytest.mark.parametrize(("error", "says"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "smaller batch"),
    (RuntimeError("operation not permitted when stream is capturing\nmore"), "not permitted when stream is capturing")])
def test_what_cannot_be_recorded(streams, error, says):
    def run(images):
        raise error

    with pytest.raises(InputError, match=says) as caught:
        record(run, IMAGES, "steps")
    assert "capture: steps" in str(caught.value)
    assert "more" not in str(caught.value)
    assert streams == [torch.cuda.current_stream()]
