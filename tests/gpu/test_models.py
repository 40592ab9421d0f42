"""Whole models on a GPU, every backend and dtype, against the edge-wise forward in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch.utils._python_dispatch import TorchDispatchMode

from tests.compiler.cases import case_of, cases
from tests.gpu.rig import (
    BACKENDS,
    DEVICE,
    DTYPES,
    FIRST,
    OURS,
    REHEARSAL,
    at_level,
    capability,
    check,
    images_of,
    need,
    on_device,
    poison,
    side_stream,
    synchronize,
)
from vitsparse import InputError, SparseViT, sparsify
from vitsparse.circuit import Graph
from vitsparse.model.config import ViTConfig

pytestmark = pytest.mark.gpu


def shape(tokens_a_side: int, width: int, heads: int, depth: int = 2) -> ViTConfig:
    return ViTConfig(img_size=4 * tokens_a_side, patch_size=4, in_chans=3, num_classes=10, embed_dim=width, depth=depth,
                     num_heads=heads)


SHAPES = {
    "65 tokens, width 256, heads of 32": shape(8, 256, 8),
    "197 tokens, width 768, heads of 64": shape(14, 768, 12),
    "17 tokens, width 64, heads of 16": shape(4, 64, 4),
    "50 tokens, width 256, heads of 128": shape(7, 256, 2),
    "257 tokens, width 128, heads of 64": shape(16, 128, 2),
    "26 tokens, width 60, heads of 20": shape(5, 60, 3),
}


@pytest.fixture(params=DTYPES)
def dtype(request) -> torch.dtype:
    need(dtype=DTYPES[request.param])
    return DTYPES[request.param]


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_circuits(backend, dtype):
    need(backend, dtype)

    @settings(max_examples=20 if backend == "cuda" else 5)  # Triton compiles for every shape
    @given(cases())
    def run(case):
        poison()
        with torch.inference_mode():
            check(on_device(case, backend, dtype)(images_of(case, dtype)), case, dtype)

    run()


@pytest.mark.parametrize(("backend", "dtype_name"), [(backend, name) for backend in OURS for name in DTYPES
                                                     if backend != "triton" or name == "float16"])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name, backend, dtype_name):
    """Cut edges under mean ablation, and all of them kept; of Triton, which compiles for each, in one dtype."""
    dtype, graph = DTYPES[dtype_name], Graph(2, SHAPES[name].num_heads, mlp_groups=2)
    need(backend, dtype)
    for kind in ("sparse", "full"):
        case = case_of(kind, config=SHAPES[name], graph=graph)
        poison()
        with torch.inference_mode():
            check(on_device(case, backend, dtype)(images_of(case, dtype)), case, dtype)


@pytest.mark.parametrize("backend", OURS)
@pytest.mark.parametrize("batch", [1, 2, 5, 33, 128])
def test_batches(backend, batch):
    """Every image of a batch is computed as if it came alone."""
    case = case_of("sparse", config=SHAPES["65 tokens, width 256, heads of 32"], graph=Graph(2, 8))
    sparse, images = on_device(case, backend), torch.randn(batch, 3, 32, 32).to(DEVICE, torch.float16)
    images[-1] = images_of(case)[0]
    images[0] = images_of(case)[1]
    with torch.inference_mode():
        poison()
        logits, alone = sparse(images), sparse(images[[0, -1]])
    assert logits.shape == (batch, 10)
    assert logits.isfinite().all()
    assert float((logits[[0, -1]] - alone).abs().max()) <= 2e-2 * float(alone.abs().max())
    some = torch.cat([logits[-1:], logits[:1]]) if batch > 1 else logits
    expected = case.exact[:2] if batch > 1 else case.exact[1:2]
    assert float((some.double().cpu() - expected).abs().max()) <= 3e-2 * float(case.exact.abs().max())


@pytest.mark.parametrize("level", [75, 80, 90])
@pytest.mark.parametrize("dtype_name", DTYPES)
def test_the_code_of_every_level(level, dtype_name, record_property):
    """Older code runs on newer cards, and computes the same."""
    dtype, own = DTYPES[dtype_name], capability_level()
    need(FIRST, dtype)
    if level > own:
        pytest.skip(f"this GPU has level {own}")
    if level < 80 and dtype == torch.bfloat16:
        pytest.skip("this GPU is as good as one without bfloat16 here")
    for name in ("65 tokens, width 256, heads of 32", "26 tokens, width 60, heads of 20"):
        case = case_of("sparse", config=SHAPES[name], graph=Graph(2, SHAPES[name].num_heads))
        with torch.inference_mode(), at_level(level):
            poison()
            check(on_device(case, FIRST, dtype)(images_of(case, dtype)), case, dtype)
    record_property("cuda_level", level)


def capability_level() -> int:
    return 75 if capability() < (8, 0) else 90 if capability() == (9, 0) else 80


def test_sums_in_float16_are_asked_for_by_torchs_flag():
    case = case_of("sparse", config=SHAPES["65 tokens, width 256, heads of 32"], graph=Graph(2, 8))
    flags = torch.backends.cuda.matmul
    before = flags.allow_fp16_accumulation
    try:
        flags.allow_fp16_accumulation = True
        with torch.inference_mode():
            check(on_device(case, FIRST)(images_of(case)), case)
    finally:
        flags.allow_fp16_accumulation = before


def test_auto_takes_the_fastest_backend():
    case = case_of("sparse")
    need(FIRST)
    sparse = sparsify(case.model, case.circuit, ablation=case.ablation).eval().to(DEVICE, torch.float16)
    assert sparse.chosen_backend == FIRST
    with torch.inference_mode():
        check(sparse(images_of(case)), case)


PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "linear")


class Ops(TorchDispatchMode):
    """Names of the ops that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func).removesuffix(".default"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", OURS)
def test_no_layer_falls_back_to_torch(backend):
    """Attention is never torch's, and products of torch's are at most two: of patches, and of the classifier."""
    case = case_of("dense", config=SHAPES["65 tokens, width 256, heads of 32"], graph=Graph(2, 8))
    sparse, images = on_device(case, backend), images_of(case)
    with torch.inference_mode():
        sparse(images)
        with Ops() as ops:
            sparse(images)
    if REHEARSAL:
        assert any("scaled_dot_product" in name for name in ops.names)
        return
    assert any(name.startswith("vitsparse") for name in ops.names), ops.names
    assert not [name for name in ops.names if "scaled_dot_product" in name or "softmax" in name]
    products = [name for name in ops.names if name.split(".")[:2] in [["aten", product] for product in PRODUCTS]]
    assert len(products) <= 2, products


@pytest.mark.parametrize("backend", OURS)
def test_a_model_may_be_sparsified_where_it_is(backend):
    """From a dense model that already lies on the GPU, in float32, then cast; and back to the CPU again."""
    case = case_of("sparse")
    need(backend)
    sparse = sparsify(case.model.to(DEVICE), case.circuit, ablation=case.ablation, backend=backend).eval()
    with torch.inference_mode():
        check(sparse(images_of(case, torch.float32)), case, torch.float32)
        check(sparse.half()(images_of(case)), case)
    sparse.backend = "torch"
    with torch.inference_mode():
        assert sparse.to("cpu", torch.float32)(case.images).isfinite().all()


@pytest.mark.parametrize("backend", OURS)
def test_strided_images_are_read_as_they_are(backend):
    case = case_of("sparse")
    sparse, images = on_device(case, backend), images_of(case)
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    with torch.inference_mode():
        check(sparse(strided), case)


def test_two_sparse_models_on_two_streams():
    first, second = case_of("sparse"), case_of("dense", seed=4)
    a, b = on_device(first, FIRST), on_device(second, FIRST)
    x, y = images_of(first), images_of(second)
    with torch.inference_mode():
        expected = a(x), b(y)
        for _ in range(10):
            with side_stream():
                left = a(x)
            right = b(y)
            synchronize()
            assert torch.equal(left, expected[0])
            assert torch.equal(right, expected[1])


@pytest.mark.parametrize("backend", OURS)
def test_gradients_are_those_of_plain_torch(backend):
    """A backward pass needs no kernels of ours, and gets the same."""
    case = case_of("sparse")
    sparse, plain = (on_device(case, name, torch.float32) for name in (backend, "torch"))
    images = images_of(case, torch.float32)
    for model in (sparse, plain):
        model(images).square().sum().backward()
    for (key, ours), (_, theirs) in zip(sparse.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3 * float(theirs.grad.abs().max())), key


def test_tensors_of_another_device_or_dtype_are_refused():
    case = case_of("sparse")
    sparse = on_device(case, FIRST)
    with torch.inference_mode():
        with pytest.raises((InputError, RuntimeError)):
            sparse(images_of(case).double())
        if not REHEARSAL:
            with pytest.raises((InputError, RuntimeError)):
                sparse(case.images.half())
        with pytest.raises(InputError, match="do not fit"):
            sparse(images_of(case)[:, :1])
        check(sparse(images_of(case)), case)


def test_a_backend_of_the_cpu_is_not_replaced():
    sparse = on_device(case_of("sparse"), FIRST)
    sparse.backend = "cpu"
    with pytest.raises(InputError, match="cpu"):
        sparse(images_of(case_of("sparse")))


@pytest.mark.skipif(REHEARSAL, reason="there is no level to lower")
def test_bfloat16_below_level_80_is_refused_by_name():
    """As on a T4: the error names the type, and the model stays usable in float16."""
    case = case_of("sparse")
    turing = torch.cuda.get_device_capability() < (8, 0)
    sparse = case.sparse("torch").eval().to(DEVICE, torch.bfloat16)
    sparse.backend = "cuda"
    with at_level(75), torch.inference_mode(), pytest.raises((InputError, RuntimeError), match="bfloat16"):
        sparse(images_of(case, torch.bfloat16))
    assert turing or sparse(images_of(case, torch.bfloat16)).isfinite().all()
    with torch.inference_mode():
        check(sparse.half()(images_of(case)), case)


@pytest.mark.parametrize("backend", OURS)
@torch.no_grad()
def test_a_saved_model_comes_back_on_the_device(tmp_path, backend):
    case = case_of("sparse")
    sparse = on_device(case, backend, torch.float32)
    sparse.save_pretrained(tmp_path)
    again = SparseViT.from_pretrained(tmp_path, device=DEVICE)
    assert again.chosen_backend == backend
    images = images_of(case, torch.float32)
    assert torch.equal(again(images), sparse(images))
