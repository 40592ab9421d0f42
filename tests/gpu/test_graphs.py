"""Captured models: the same logits as without a graph, again after every change, among streams and other models."""

from __future__ import annotations

import pytest
import torch

from tests.compiler.cases import case_of
from tests.gpu.rig import (
    BACKENDS,
    DEVICE,
    FIRST,
    OURS,
    REHEARSAL,
    busy_stream,
    capture,
    check,
    images_of,
    on_device,
    poison,
    side_stream,
    synchronize,
)
from vitsparse import InputError
from vitsparse.circuit import Graph
from vitsparse.compiler.runners import WAYS_OF
from vitsparse.model.config import ViTConfig

pytestmark = pytest.mark.gpu

TABLE = ViTConfig(img_size=64, patch_size=8, in_chans=3, num_classes=10, embed_dim=256, depth=3, num_heads=8)
"""Three layers of the model of the tables."""


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Kernels of another grouping may round otherwise."""
    return float((found - expected).abs().max()) <= 1e-2 * float(expected.abs().max())


@pytest.mark.parametrize("kind", ["sparse", "full", "constant"])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_a_captured_model_computes_the_circuit(backend, kind):
    case = case_of(kind, config=TABLE, graph=Graph(3, 8, mlp_groups=2))
    sparse = on_device(case, backend)
    poison()
    runner = capture(sparse, images_of(case))
    check(runner(images_of(case)), case)
    assert runner.how


@pytest.mark.parametrize(("backend", "how"), [(name, how) for name in OURS for how in WAYS_OF.get(name, ("steps",))])
def test_every_way_to_run_a_model(backend, how):
    for kind in ("sparse", "full"):
        case = case_of(kind, config=TABLE, graph=Graph(3, 8, mlp_groups=2))
        sparse = on_device(case, backend)
        for images in (images_of(case)[:1], images_of(case)):
            poison()
            runner = capture(sparse, images, how)
            for _ in range(20):  # what blocks of one launch do to each other is seen only now and then
                assert close(runner(images), sparse(images))
            assert REHEARSAL or runner.how == how


@pytest.mark.skipif(REHEARSAL, reason="nothing is captured")
def test_an_unknown_way_is_refused():
    case = case_of("sparse")
    with pytest.raises(InputError, match="persistent"):
        on_device(case, FIRST).capture(images_of(case), how="quickly")


@pytest.mark.parametrize("backend", OURS)
def test_results_are_fresh_and_replays_are_not(backend):
    case = case_of("sparse")
    sparse, images = on_device(case, backend), images_of(case)
    runner = capture(sparse, images)
    first = runner(images)
    kept, second = first.clone(), runner(images.flip(0))
    assert torch.equal(first, kept)
    assert close(second, kept.flip(0))
    assert second.data_ptr() != runner.output.data_ptr()
    runner.input.copy_(images)
    runner.replay()
    synchronize()
    assert torch.equal(runner.output, kept)


@pytest.mark.parametrize("backend", OURS)
def test_captured_in_inference_mode_and_called_outside(backend):
    case = case_of("sparse")
    sparse, images = on_device(case, backend), images_of(case)
    runner, expected = capture(sparse, images), sparse(images)
    with torch.inference_mode(False), torch.no_grad():
        assert close(runner(images.clone()), expected.clone())


@pytest.mark.parametrize("backend", OURS)
def test_a_new_batch_size_or_dtype_is_captured_anew(backend):
    case = case_of("sparse")
    sparse, images = on_device(case, backend), images_of(case)
    runner = capture(sparse, images)
    for batch in (1, 3, 2, 3):
        assert close(runner(images[:batch]), sparse(images[:batch]))
        assert runner.output.shape == (batch, 5)
    for dtype in (torch.float32, torch.float16):
        sparse.to(dtype)
        found = runner(images.to(dtype))
        assert found.dtype == dtype
        assert close(found, sparse(images.to(dtype)))
    check(found, case)


@pytest.mark.parametrize("backend", OURS)
def test_changed_parameters_are_seen(backend):
    case = case_of("sparse")
    sparse, images = on_device(case, backend), images_of(case)
    runner = capture(sparse, images)
    before = runner(images)
    with torch.inference_mode(False), torch.no_grad():
        sparse.head.bias.add_(1.0)
    assert close(runner(images), before + 1)
    with torch.inference_mode(False):
        sparse.load_state_dict({key: value * 1.2 for key, value in sparse.state_dict().items()})
    assert close(runner(images), sparse(images))
    assert not close(runner(images), before + 1)


def test_two_captured_models_take_turns_on_two_streams():
    first, second = case_of("sparse", config=TABLE, graph=Graph(3, 8)), case_of("dense", seed=4)
    a, b = on_device(first, FIRST), on_device(second, FIRST)
    x, y = images_of(first), images_of(second)
    run_a, run_b = capture(a, x), capture(b, y)
    expected = run_a(x), run_b(y)
    for _ in range(20):
        with side_stream():
            left = run_a(x)
        with side_stream():
            right = run_b(y)
        synchronize()
        assert torch.equal(left, expected[0])
        assert torch.equal(right, expected[1])


def test_one_graph_replays_on_any_stream():
    case = case_of("sparse")
    runner, images = capture(on_device(case, FIRST), images_of(case)), images_of(case)
    expected = runner(images)
    for _ in range(5):
        with side_stream():
            found = runner(images)
        assert torch.equal(found, expected)


def test_capturing_while_another_stream_is_busy():
    case = case_of("sparse")
    sparse, images = on_device(case, FIRST), images_of(case)
    with busy_stream():
        runner = capture(sparse, images)
        check(runner(images), case)


def test_memory_freed_between_replays_is_not_the_graphs():
    """What others allocate and overwrite after the capture reaches no buffer of the graph."""
    case = case_of("sparse", config=TABLE, graph=Graph(3, 8))
    runner, images = capture(on_device(case, FIRST), images_of(case)), images_of(case)
    expected = runner(images)
    for _ in range(5):
        poison()
        assert torch.equal(runner(images), expected)


def test_runners_outlive_the_name_of_their_model():
    case = case_of("sparse")
    runner, images = capture(on_device(case, FIRST), images_of(case)), images_of(case)
    poison()
    check(runner(images), case)


@pytest.mark.skipif(REHEARSAL, reason="the memory of the CPU is not limited")
def test_a_model_stays_usable_when_memory_runs_out_in_a_capture():
    case = case_of("sparse", config=TABLE, graph=Graph(3, 8))
    sparse, small = on_device(case, FIRST), images_of(case)
    large = torch.randn(2048, 3, 64, 64, device=DEVICE, dtype=torch.float16)
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    runner = capture(sparse, small)
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**24) / total)
        with pytest.raises((InputError, torch.OutOfMemoryError), match="memory"):
            capture(sparse, large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    check(sparse(small), case)
    check(runner(small), case)
    check(capture(sparse, small)(small), case)


def test_images_that_do_not_fit_leave_the_runner_as_it_was():
    case = case_of("sparse")
    runner, images = capture(on_device(case, FIRST), images_of(case)), images_of(case)
    with pytest.raises(InputError, match="do not fit"):
        runner(images[:, :1])
    check(runner(images), case)
