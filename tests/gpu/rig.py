"""What the tests of whole models on a GPU share: the device, its backends, models on it, and what error is allowed.

``VITSPARSE_REHEARSE_ON=cpu pytest -m gpu tests/gpu`` runs the same tests on the CPU with backends that need no GPU, and
plain calls for CUDA graphs: it proves nothing about a GPU, but finds what is wrong with a test before one is at hand.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from tests.compiler.cases import Case
from tests.tolerances import BACKEND, LOW_PRECISION_RATIO, error
from vitsparse import SparseViT, edgewise_forward
from vitsparse.ops.backend import why_not
from vitsparse.ops.cuda_level import using_cuda_level

DEVICE = os.environ.get("VITSPARSE_REHEARSE_ON", "cuda")
REHEARSAL = DEVICE == "cpu"
BACKENDS = ("torch", "reference") if REHEARSAL else ("cuda", "triton", "torch")
OURS = ("torch",) if REHEARSAL else ("cuda", "triton")
"""Backends with kernels of their own."""
FIRST = OURS[0]
"""The backend that ``auto`` takes on every GPU that is supported."""
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def capability() -> tuple[int, int]:
    return (9, 0) if REHEARSAL else torch.cuda.get_device_capability()


def need(backend: str = "torch", dtype: torch.dtype = torch.float16) -> None:
    """Skip what this GPU is too old for; fail where a backend cannot be used for any other reason."""
    if dtype == torch.bfloat16 and capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    if backend == "triton" and capability() < (8, 0):
        pytest.skip("this GPU has no tensor cores for Triton")
    if reasons := why_not(backend, DEVICE):
        pytest.fail(f"backend {backend} cannot be used: {'; '.join(reasons)}")


def on_device(case: Case, backend: str, dtype: torch.dtype = torch.float16) -> SparseViT:
    """The sparse model of a case on the device, bound to one backend."""
    need(backend, dtype)
    sparse = case.sparse("torch").eval()
    sparse.backend = backend
    sparse.to(DEVICE, dtype)
    assert sparse.chosen_backend == backend
    return sparse


def images_of(case: Case, dtype: torch.dtype = torch.float16) -> Tensor:
    return case.images.to(DEVICE, dtype)


def allowed(case: Case, dtype: torch.dtype) -> float:
    """The error that a backend may have on a case: twice that of plain torch in the same dtype, and 4 units of its
    last place; in float32 that of any backend.

    Plain torch is the edge-wise forward and the plan on torch's own ops, whichever errs more on these few logits.
    """
    if dtype == torch.float32:
        return BACKEND
    with torch.no_grad():
        edgewise = edgewise_forward(copy.deepcopy(case.model).to(DEVICE, dtype), images_of(case, dtype),
                                    case.circuit.keep, graph=case.circuit.graph, ablation=case.ablation)
        plan = on_device(case, "torch", dtype)(images_of(case, dtype))
    plain = max(error(logits.cpu(), case.exact) for logits in (edgewise, plan))
    return LOW_PRECISION_RATIO * plain + 4 * torch.finfo(dtype).eps


def check(logits: Tensor, case: Case, dtype: torch.dtype = torch.float16) -> None:
    """``logits`` are those of the definition in float64."""
    assert (logits.dtype, logits.device.type) == (dtype, DEVICE)
    assert error(logits.cpu(), case.exact) <= allowed(case, dtype)


def poison() -> None:
    """Leave NaN in the memory that torch's allocator hands out next, in blocks of every size that a test asks for."""
    for size in (2**9, 2**12, 2**16, 2**20, 2**23):
        blocks = [torch.full((size,), float("nan"), device=DEVICE, dtype=torch.float16) for _ in range(8)]
        del blocks


def at_level(level: int) -> AbstractContextManager[None]:
    """The code of the CUDA kernels for a feature level."""
    return contextlib.nullcontext() if REHEARSAL else using_cuda_level(level)


class PlainRunner:
    """``SparseViT.capture`` without a GPU."""

    how = "none"

    def __init__(self, sparse: SparseViT, images: Tensor):
        self.sparse, self.input = sparse, images.clone()
        self.replay()

    def __call__(self, images: Tensor) -> Tensor:
        self.input = images.clone()
        self.replay()
        return self.output.clone()

    def replay(self) -> None:
        self.output = self.sparse(self.input)


def capture(sparse: SparseViT, images: Tensor, how: str = "auto"):
    return PlainRunner(sparse, images) if REHEARSAL else sparse.capture(images, how=how)


def synchronize() -> None:
    if not REHEARSAL:
        torch.cuda.synchronize()


@contextlib.contextmanager
def side_stream() -> Iterator[None]:
    """Work inside goes to a stream of its own, after what was asked for before; what follows waits for it."""
    if REHEARSAL:
        yield
        return
    stream, outside = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(outside)
    with torch.cuda.stream(stream):
        yield
    outside.wait_stream(stream)


@contextlib.contextmanager
def busy_stream(milliseconds: float = 50.0) -> Iterator[None]:
    """Another stream has work to do meanwhile."""
    if not REHEARSAL:
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(int(milliseconds * 1e6))  # cycles; a GPU has one to two in a nanosecond
    yield
    synchronize()
