"""A training step as CUDA graphs: recorded once, then replayed.

A step of twelve blocks is some 700 launches, 950 with a teacher. A GPU is done with those of a small model, or a small
batch, before Python has asked for them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor

from .optim import Updater

logger = logging.getLogger("vitsparse")
WARM_UP = 3
"""Steps before recording: by then the optimizers have their state and the libraries their memory."""


@dataclass(frozen=True)
class Recording:
    """``replay`` does again what was recorded; ``output`` is the tensor that it writes, over and over."""

    replay: Callable[[], None]
    output: Tensor | None


class Tape:
    """Records what is launched on ``device``, on a stream of its own and into memory that all its recordings share."""

    def __init__(self, device: torch.device):
        self.device, self.stream, self.pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Work inside goes to the tape's stream, where autograd and the libraries shall expect it when recording."""
        outside = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            yield
        outside.wait_stream(self.stream)

    def record(self, run: Callable[[], Tensor | None]) -> Recording:
        """``run()``, not done yet. RuntimeError where it does what cannot be recorded, such as waiting for a value."""
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                output = run()
        finally:
            torch.cuda.set_stream(before)  # where a recording breaks off, torch leaves its stream in place
        return Recording(graph.replay, output)


class Graphed:
    """Makes the updates of ``updater``: the first ones as they are, then by replaying a recording of its two halves.

    It is recorded anew for batches of another shape, and when a part of the model was exchanged, as a sparse one does
    with its plan when it is evaluated. Where recording fails a warning says why, and it goes on without.
    """

    def __init__(self, updater: Updater, tape: Tape):
        self.updater, self.tape = updater, tape
        self.trained = [p for p in updater.model.parameters() if p.requires_grad]
        self.can_record = True
        self._forget(None)

    def backward(self, images: Tensor, targets: Tensor) -> Tensor:
        """As :meth:`Updater.backward`."""
        shapes = images.shape, images.dtype, targets.shape, targets.dtype
        if shapes != self.shapes or (self.halves is not None and not self._is_as_recorded()):
            self._forget(shapes)
        if self.halves is None and self.can_record and self.steps >= WARM_UP:
            self._record(images, targets)
        self.steps += 1
        if self.halves is None:
            with self.tape.aside():
                return self.updater.backward(images, targets)
        for kept, given in zip(self.inputs, (images, targets), strict=True):
            kept.copy_(given)
        self.halves[0].replay()
        return self.halves[0].output.clone()

    def update(self, lr: float, norm: Tensor) -> None:
        """As :meth:`Updater.update`; ``norm`` is that of the last :meth:`backward`."""
        if self.halves is None:
            with self.tape.aside():
                return self.updater.update(lr, norm)
        self.updater.set_rate(lr)
        self.halves[1].replay()
        # A replay changes the weights behind torch's back; who keeps something made from them has to see it.
        torch.autograd.graph.increment_version(self.trained)
        return None

    def _forget(self, shapes: tuple | None) -> None:
        self.shapes, self.steps = shapes, 0
        self.inputs: tuple[Tensor, ...] = ()
        self.parts: list[Any] = []  # kept, since a recording reads the tensors in them
        self.halves: tuple[Recording, Recording] | None = None

    def _parts(self) -> list[Any]:
        """All that the models hold."""
        modules = [module for model in (self.updater.model, self.updater.teacher) if model is not None
                   for module in model.modules()]
        return [part for module in modules for table in (vars(module), module._parameters, module._buffers)
                for part in table.values()]

    def _is_as_recorded(self) -> bool:
        parts = self._parts()
        return len(parts) == len(self.parts) and all(map(is_, parts, self.parts))

    def _record(self, images: Tensor, targets: Tensor) -> None:
        self.inputs, self.parts = (images.clone(), targets.clone()), self._parts()
        try:
            backward = self.tape.record(lambda: self.updater.backward(*self.inputs))
            step = self.tape.record(lambda: self.updater.step(backward.output[-1]))
        except RuntimeError as error:
            self.can_record = False
            logger.warning("the training step cannot be recorded as a CUDA graph and is launched piece by piece: %s",
                           str(error).partition("\n")[0])
        else:
            self.halves = backward, step


def recorded(updater: Updater, device: torch.device) -> Updater | Graphed:
    """``updater``, or what replays it, where the recipe asks for that and the device and the updater allow it."""
    fits = device.type == "cuda" and updater.ranks.world == 1 and not updater.policy.scale_loss
    return Graphed(updater, Tape(device)) if updater.recipe.cuda_graph and fits else updater
