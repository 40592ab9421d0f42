"""A sparse model as CUDA graphs: one for each shape and dtype of images, replayed without a word of Python per step."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from .sparse_vit import SparseViT

logger = logging.getLogger("vitsparse")
WARM_UP = 3
"""Runs before recording: memory is reserved, Triton compiles and tunes, and none of it may happen while recording."""
TRIAL_SECONDS = 0.02


@dataclass(frozen=True)
class Recording:
    """One graph, the memory that it reads and writes, and how it runs (:meth:`SparseViT.ways`)."""

    graph: torch.cuda.CUDAGraph
    input: Tensor
    output: Tensor
    how: str


class Captured:
    """A sparse model that replays CUDA graphs; made by :meth:`SparseViT.capture`.

    Called with images [B, C, S, S] it returns their logits [B, num_classes], in memory of their own. Images of a new
    shape, and changed parameters, are recorded anew by themselves; ``how`` is the way that was taken. Calls from
    several threads or on several streams wait for each other: a graph has one input and one output. No gradients.
    """

    def __init__(self, model: SparseViT, images: Tensor, how: str = "auto"):
        ways = model.ways(images)
        if how != "auto" and how not in ways:
            raise InputError("no such way to run this model", where="capture: how", found=how,
                             expected=" or ".join(("auto", *ways)))
        self._model, self._wanted, self._recordings = model, how, {}
        self._done: torch.cuda.Event | None = None
        self._compiled: object = None
        self._lock = threading.Lock()
        self._current = self._recording(images)

    def __call__(self, images: Tensor) -> Tensor:
        """The logits of ``images``."""
        with self._lock:
            current = self._current = self._recording(images)
            stream = torch.cuda.current_stream(images.device)
            if self._done is not None:
                stream.wait_event(self._done)
            current.input.copy_(images.detach())
            current.graph.replay()
            logits = current.output.clone()
            self._done = stream.record_event(self._done)
            return logits

    def replay(self) -> None:
        """Run the graph that was last used on whatever :attr:`input` holds; the result is in :attr:`output`."""
        self._current.graph.replay()

    @property
    def input(self) -> Tensor:
        """What the graph that was last used reads."""
        return self._current.input

    @property
    def output(self) -> Tensor:
        """What it writes, over and over: logits [B, num_classes]."""
        return self._current.output

    @property
    def how(self) -> str:
        """The way it runs."""
        return self._current.how

    def __repr__(self) -> str:
        shapes = ", ".join(f"{shape[0]} ({recording.how})" for (shape, *_), recording in self._recordings.items())
        return f"Captured({self._model!r}, batches: {shapes})"

    def _recording(self, images: Tensor) -> Recording:
        compiled = self._model.compiled(images)
        if compiled is not self._compiled:
            for recording in self._recordings.values():
                torch.cuda.synchronize(recording.input.device)  # a graph may still run on the memory that now goes
            self._compiled, self._recordings, self._done = compiled, {}, None
        key = images.shape, images.dtype, images.device
        if key not in self._recordings:
            torch.cuda.synchronize(images.device)
            self._recordings[key] = self._record(images)
        return self._recordings[key]

    def _record(self, images: Tensor) -> Recording:
        ways = self._model.ways(images)
        names = list(ways) if self._wanted == "auto" else [self._wanted]
        with torch.cuda.device(images.device), torch.no_grad():
            found: list[Recording | InputError] = [_attempt(ways[name], images, name) for name in names]
            recordings = [each for each in found if isinstance(each, Recording)]
            if not recordings:
                raise found[0]  # type: ignore[misc]
            return recordings[0] if len(recordings) == 1 else min(recordings, key=_milliseconds)


def _attempt(run: Callable[[Tensor], Tensor], images: Tensor, how: str) -> Recording | InputError:
    """A recording, or why there is none: of several ways, one may not fit the device."""
    try:
        return record(run, images, how)
    except InputError as error:
        logger.info("not recorded as %s: %s", how, error)
        return error


def record(run: Callable[[Tensor], Tensor], images: Tensor, how: str) -> Recording:
    """``run(images)`` as a graph on the current device. Raises :class:`InputError` where it cannot be recorded."""
    with torch.inference_mode(False):  # what is made in inference mode could not be written outside of it
        kept = images.detach().clone(memory_format=torch.contiguous_format)
    graph, before, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), torch.cuda.Stream()
    try:
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                run(kept)
        before.wait_stream(stream)
        # a stream of this device: torch would take one that the whole process shares
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = run(kept)
    except torch.OutOfMemoryError as error:
        raise InputError("the memory of the GPU does not hold a graph for this batch", where=f"capture: {how}",
                         found=f"batch {len(images)}; {_first_line(error)}",
                         remedy="a smaller batch; the model itself still runs") from error
    except RuntimeError as error:
        raise InputError("this cannot be recorded as a CUDA graph", where=f"capture: {how}", found=_first_line(error),
                         remedy="another `how`, or the model itself without capture()") from error
    finally:
        torch.cuda.set_stream(before)  # where a recording breaks off, torch leaves its stream in place
    return Recording(graph, kept, output, how)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _milliseconds(recording: Recording) -> float:
    """What a replay takes, of many back to back."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    recording.graph.replay()
    torch.cuda.synchronize()
    replays, stop = 0, time.perf_counter() + TRIAL_SECONDS
    start.record()
    while replays < 10 or (time.perf_counter() < stop and replays < 1000):
        recording.graph.replay()
        replays += 1
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / replays
