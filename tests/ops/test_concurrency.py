"""Python threads that share a sparse model: each forward gives what it gives alone, bit by bit."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tests.compiler.cases import case_of
from tests.ops.kernels import needs_cpu_ops
from tests.strategies import make_images
from vitsparse.compiler import SparseViT
from vitsparse.model.config import ViTConfig

pytestmark = needs_cpu_ops

THREADS = 8
BATCHES = (1, 3, 33)
# Wide enough for the executor to share the steps of one image among threads.
WIDE = ViTConfig(img_size=24, patch_size=4, in_chans=3, num_classes=5, embed_dim=96, depth=2, num_heads=3)


@pytest.fixture(params=[1, 2], ids=["one thread each", "two threads each"])
def each(request) -> Iterator[int]:
    """Threads that torch may use inside a forward."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def model(kind: str = "sparse", seed: int = 3) -> SparseViT:
    return case_of(kind, config=WIDE, seed=seed).sparse("cpu")


def all_images() -> list[Tensor]:
    """Other images for each thread, and each size of batch."""
    return [make_images(WIDE, batch, seed=THREADS * batch + i) for batch in BATCHES for i in range(THREADS)]


def at_once(calls: list[Callable[[], Tensor]], each: int = 1) -> list[Tensor]:
    """What the calls return; :data:`THREADS` threads take them as they come, the first ones at the same moment."""
    start = threading.Barrier(THREADS)

    def begin() -> None:
        torch.set_num_threads(each)  # a new thread does not know of its creator's
        start.wait()

    with ThreadPoolExecutor(THREADS, initializer=begin) as pool:
        return list(pool.map(lambda call: call(), calls))


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(map(torch.equal, found, expected))


def quietly(sparse: SparseViT, images: Tensor) -> Tensor:
    with torch.no_grad():
        return sparse(images)


def in_inference_mode(sparse: SparseViT, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return sparse(images)


@pytest.mark.parametrize("forward", [quietly, in_inference_mode, lambda sparse, images: sparse(images).detach()],
                         ids=["no_grad", "inference_mode", "with gradients"])
def test_many_threads_share_a_model(each, forward):
    sparse, images = model(), all_images() * 3
    expected = [forward(sparse, x) for x in images]
    assert same(at_once([lambda x=x: forward(sparse, x) for x in images], each), expected)


def test_the_first_forwards_happen_at_once(each):
    """Plans and programs are made on first use, by whoever comes first."""
    images, reference = all_images(), model()
    with torch.no_grad():
        logits = [reference(x) for x in images]
        features = [reference.forward_features(x) for x in images]
    for _ in range(5):
        sparse = copy.deepcopy(reference)
        calls = [lambda x=x, forward=forward: quietly_call(forward, x)
                 for x in images for forward in (sparse, sparse.forward_features)]
        found = at_once(calls, each)
        assert same(found[::2], logits)
        assert same(found[1::2], features)


def quietly_call(forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.no_grad():
        return forward(images)


def test_two_models_at_once(each):
    """Threads keep memory from call to call; what a model leaves there is nothing to another one."""
    first, second = model(), model("dense", seed=5).drop_parameters()
    images = all_images()
    expected = [quietly(sparse, x) for x in images for sparse in (first, second)]
    calls = [lambda x=x, sparse=sparse: quietly(sparse, x) for x in images for sparse in (first, second)]
    assert same(at_once(calls, each), expected)


def test_parameters_change_meanwhile(each):
    """A forward in the middle of a change may see any mixture of old and new; one after it sees the new ones."""
    sparse, images, stop = model(), all_images(), threading.Event()

    def change() -> None:
        with torch.no_grad():
            while not stop.is_set():
                sparse.head.bias.add_(1)
                sparse.head.weight.copy_(sparse.head.weight.clone())
                sparse.eval()
                time.sleep(0.001)

    writer = threading.Thread(target=change)
    writer.start()
    try:
        found = at_once([lambda x=x: quietly(sparse, x) for x in images * 2], each)
    finally:
        stop.set()
        writer.join()
    assert all(out.isfinite().all() for out in found)
    fresh = copy.deepcopy(sparse)
    assert same([quietly(sparse, x) for x in images], [quietly(fresh, x) for x in images])


def test_a_forked_worker_can_run_the_model():
    """As in a DataLoader's worker, which torch limits to one thread: torch's own pool does not survive a fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    sparse, images = model(), make_images(WIDE, 33)
    expected = quietly(sparse, images)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(0 if torch.equal(quietly(sparse, images), expected) else 3)
    torch.set_num_threads(before)
    assert ended(child, seconds=60) == 0


def ended(child: int, seconds: float) -> int:
    """The exit status of a child process, which is killed when it takes longer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")
