"""Every Triton kernel against the reference in float64: on a GPU, and in Triton's interpreter.

The interpreter needs a process of its own, because Triton reads TRITON_INTERPRET when it is first imported:
``test_interpreter.py`` runs this file in one. bfloat16 is for GPUs alone: the interpreter computes garbage in it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tolerances import LOW_PRECISION_RATIO
from tests.triton import cases
from vitsparse.backends import portable, reference, triton
from vitsparse.ops.attention import attention
from vitsparse.ops.linear import linear

DEVICES = ["cpu"] if triton.interpreted() else [pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.float16, *([] if triton.interpreted() else [torch.bfloat16])]
SLACK = {torch.float32: 1e-5, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # relative to the largest number

pytestmark = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch):
    """The first tiling serves, as it does without a GPU: measuring hundreds of shapes would take an hour."""
    monkeypatch.setattr("vitsparse._triton.tune.choose", lambda op, x, shape, candidates, launch: candidates[0])


def flat(results: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return list(results) if isinstance(results, tuple) else [results]


def error(result: Tensor, exact: Tensor) -> float:
    """max |difference| over max |exact| (at least 1); infinite when anything is NaN."""
    assert result.shape == exact.shape
    if exact.numel() == 0:
        return 0.0
    worst = (result.cpu().double() - exact).abs().max().item()
    return worst / max(exact.abs().max().item(), 1.0) if worst == worst else float("inf")


def poison(results: list[Tensor], device: str) -> None:
    """Leave NaN in memory that torch is likely to hand out next, so that what a kernel forgets shows."""
    for _ in range(3):
        kept = [torch.full_like(x, float("nan"), device=device) for x in results for _ in range(2)]
        del kept


def check(case: cases.Case, device: str, dtype: torch.dtype, layout: Callable[[Tensor], Tensor] = Tensor.clone) -> None:
    """The op against the reference in float64: as good as plain PyTorch in this precision, within a factor.

    ``layout``: lays each tensor out in the device's memory.
    """
    rounded = case.mapped(lambda x: x.to(dtype))
    exact = flat(getattr(reference, case.op)(*rounded.mapped(lambda x: x.double()).arguments))
    plain = flat(getattr(portable, case.op)(*rounded.arguments))
    there = rounded.to(device).mapped(layout)
    poison(plain, device)
    found = flat(getattr(torch.ops.vitsparse, f"{case.op}_triton")(*there.arguments))
    for result, other, truth in zip(found, plain, exact, strict=True):
        assert result.dtype == dtype
        assert result.is_contiguous()
        allowed = SLACK[dtype] + (LOW_PRECISION_RATIO * error(other, truth) if dtype != torch.float32 else 0)
        assert error(result, truth) <= allowed, f"{case.op}: {case.label}"


CASES = [
    ("linear", (2, 65, 64, 96)), ("linear", (1, 7, 33, 5, "per token")), ("linear", (3, 17, 130, 70, "none", "none")),
    ("linear", (1, 1, 128, 33)), ("linear", (2, 33, 16, 130, "per token", "none")),
    ("sum_norm", (2, 65, 64, 3)), ("sum_norm", (1, 5, 7, 1, False)), ("sum_norm", (2, 3, 48, 35)),
    ("sum_norm", (1, 2, 5, 70, False)), ("sum_norm", (1, 3, 300, 2)),
    ("attention", (2, 65, 65, 2, 32)), ("attention", (1, 1, 65, 3, 16)), ("attention", (2, 33, 17, 2, 24, True)),
    ("attention", (1, 197, 197, 1, 64)), ("attention", (3, 16, 1, 2, 8, True)), ("attention", (1, 20, 40, 1, 128)),
    ("qkv_attention", (2, 65, 64, 2, 32)), ("qkv_attention", (1, 5, 7, 1, 3)), ("qkv_attention", (1, 50, 32, 2, 24)),
    ("qkv_attention", (3, 17, 40, 2, 16, True)), ("qkv_attention", (2, 145, 32, 1, 32)),
    ("qkv_attention", (1, 197, 32, 2, 16)),
    ("mlp", ((2, 65), 64, 128, 64, 3)), ("mlp", ((1, 5), 7, 9, 11, 2, False)), ("mlp", ((2, 17), 80, 40, 130, 35)),
    ("mlp", ((1, 3), 600, 20, 24)), ("mlp", ((1, 33), 32, 70, 600, 1, False)),
    ("apply_pattern", (2, 65, 65, 2, 32)), ("apply_pattern", (1, 7, 33, 3, 20)), ("apply_pattern", (3, 17, 1, 1, 128)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "sizes"), CASES, ids=str)
def test_equals_the_reference(op, sizes, dtype, device):
    check(getattr(cases, op)(*sizes), device, dtype)


SMALL = st.integers(1, 40)
SIZES = st.tuples(st.integers(1, 3), SMALL, SMALL, SMALL, st.integers(1, 3), SMALL, st.booleans())


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=8, phases=[Phase.generate])  # the interpreter is too slow to shrink a failure
@given(sizes=SIZES)
def test_any_sizes(dtype, device, sizes):
    images, tokens, width, hidden, heads, head_dim, some = sizes
    for case in (cases.linear(images, tokens, width, hidden, "per token" if some else "none"),
                 cases.sum_norm(images, tokens, width, heads, some),
                 cases.attention(images, tokens, hidden, heads, head_dim, some),
                 cases.qkv_attention(images, tokens, width, heads, head_dim, some),
                 cases.mlp((images, tokens), width, hidden, width + 1, heads, some),
                 cases.apply_pattern(images, tokens, hidden, heads, head_dim)):
        check(case, device, dtype)


@pytest.mark.parametrize(("op", "sizes"), [
    ("linear", (2, 65, 96, 70)), ("sum_norm", (2, 9, 40, 3)), ("attention", (1, 65, 65, 2, 24)),
    ("attention", (1, 33, 50, 1, 80)), ("qkv_attention", (2, 65, 72, 2, 24)), ("qkv_attention", (1, 96, 40, 1, 64)),
    ("mlp", ((2, 17), 72, 80, 70)), ("mlp", ((1, 33), 300, 40, 300)), ("apply_pattern", (2, 33, 65, 2, 24))], ids=str)
def test_every_tiling_computes_the_same(op, sizes, device, monkeypatch):
    """The tuner may take any of them."""
    candidates = []

    def choose(op, x, shape, offered, launch):
        candidates.append(offered)
        return offered[tried % len(offered)]

    monkeypatch.setattr("vitsparse._triton.tune.choose", choose)
    tried = 0
    while tried == 0 or tried < len(candidates[0]):
        check(getattr(cases, op)(*sizes), device, torch.float16)
        tried += 1


def within_something_larger(x: Tensor) -> Tensor:
    """The same numbers, but every second of each dimension of a tensor of NaN: nothing dense, nothing aligned."""
    larger = x.new_full([2 * size + 1 for size in x.shape], float("nan"))
    view = larger[tuple(slice(1, None, 2) for _ in x.shape)]
    return view.copy_(x)


def columns_of_something_wider(x: Tensor) -> Tensor:
    """The same numbers in rows that are further apart, with dense columns that begin at an odd place."""
    wider = x.new_full([*x.shape[:-1], x.shape[-1] + 3], float("nan"))
    return wider[..., 1:-2].copy_(x)


@pytest.mark.parametrize("layout", [within_something_larger, columns_of_something_wider])
@pytest.mark.parametrize(("op", "sizes"), [
    ("linear", (2, 9, 20, 18, "per token")), ("linear", (2, 9, 20, 18)), ("sum_norm", (2, 9, 20, 3)),
    ("attention", (2, 9, 7, 2, 16, True)), ("qkv_attention", (2, 9, 20, 2, 16, True)), ("mlp", ((2, 9), 20, 18, 17, 2)),
    ("apply_pattern", (2, 9, 7, 2, 16))], ids=str)
def test_views_of_any_layout_are_read_where_they_lie(op, sizes, layout, device):
    check(getattr(cases, op)(*sizes), device, torch.float32, layout)


def test_one_image_stands_for_all(device):
    case = cases.attention(3, 9, 7, 2, 16, keep=True)
    q, k, v, *rest = case.arguments
    for some in ((q[:1], k, v), (q, k[:1], v), (q[:1], k[:1], v)):
        check(cases.Case("attention", "one of several", (*some, *rest)), device, torch.float32)
    every = cases.Case("linear", "a broadcast image", (q[:1].expand(3, -1, -1), torch.randn(5, 32), None, "none"))
    check(every, device, torch.float32, lambda x: x[:1].expand_as(x) if x.dim() == 3 else x)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 2, 3, 4), (0, 5, 4), (3, 0, 4)])
def test_linear_takes_any_number_of_leading_dimensions(shape, device):
    x, weight, bias = torch.randn(shape), torch.randn(6, 4), torch.randn(6)
    check(cases.Case("linear", str(shape), (x, weight, bias, "gelu")), device, torch.float32)


def test_a_product_over_nothing_is_the_bias(device):
    bias = torch.randn(40)
    no_inputs = torch.zeros(2, 3, 0), torch.zeros(40, 0), bias, "none"
    check(cases.Case("linear", "no inputs", no_inputs), device, torch.float32)
    case = cases.mlp((2, 3), 8, 1, 8)
    no_units = [*case.arguments[:3], torch.zeros(0, 8), torch.zeros(0), torch.zeros(8, 0), case.arguments[6]]
    check(cases.Case("mlp", "no units", tuple(no_units)), device, torch.float32)


def test_gelu_over_its_whole_range(device):
    x = torch.cat([torch.linspace(-8, 8, 2001), torch.tensor([-1e30, -100, -0.0, 0, 100, 1e30, float("inf")])])
    one = torch.ones(1, 1, device=device)
    y = torch.ops.vitsparse.linear_triton(x[:, None].to(device), one, None, "gelu")[:, 0].cpu()
    exact = torch.nn.functional.gelu(x.double())
    assert ((y - exact)[:-1].abs() <= 1.5e-6 * exact[:-1].abs().clamp_min(1)).all()
    assert y[-1] == float("inf")


def test_large_scores_and_offsets_do_not_overflow(device):
    case = cases.attention(1, 17, 33, 2, 16)
    q, k, *rest = case.arguments
    check(cases.Case("attention", "scores near 1000", (40 * q, 40 * k, *rest)), device, torch.float32)
    senders, offset, eps = cases.sum_norm(1, 5, 64, 2).arguments
    check(cases.Case("sum_norm", "a large mean", (senders, offset + 100, eps)), device, torch.float32)


def test_a_head_that_is_not_kept_gives_zeros_whatever_its_inputs(device):
    keep = torch.tensor([[True, False]])
    nan = torch.full((1, 5, 32), float("nan"))
    q = torch.cat([torch.randn(1, 5, 16), nan[..., :16]], -1)
    z = torch.ops.vitsparse.attention_triton(*(q.to(device) for _ in range(3)), 2, 0.25, keep.to(device)).cpu()
    assert z[..., :16].isfinite().all()
    assert not z[..., 16:].any()
    nan, weight, none = (x.to(device) for x in (nan, torch.randn(96, 32), torch.zeros(1, 2, dtype=torch.bool)))
    assert not torch.ops.vitsparse.qkv_attention_triton(nan, weight, None, 2, 0.25, none).any()


@pytest.mark.parametrize(("op", "sizes"), [("linear", (2, 20, 130, 40)), ("qkv_attention", (2, 20, 130, 2, 16)),
                                           ("mlp", ((2, 20), 130, 70, 40))], ids=str)
def test_products_may_add_up_in_half_precision(op, sizes, device, monkeypatch):
    """In slices of k, so that hardly a digit is lost; and it does happen: the bits differ."""
    case = getattr(cases, op)(*sizes)
    exactly = flat(case.mapped(lambda x: x.to(device, torch.float16)).launch())
    before = torch.backends.cuda.matmul.allow_fp16_accumulation
    torch.backends.cuda.matmul.allow_fp16_accumulation = True
    try:
        roughly = flat(case.mapped(lambda x: x.to(device, torch.float16)).launch())
    finally:
        torch.backends.cuda.matmul.allow_fp16_accumulation = before
    assert not torch.equal(exactly[0], roughly[0])
    assert error(roughly[0], exactly[0].cpu().double()) <= 8e-3


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck reads it
@pytest.mark.parametrize(("op", "sizes"), [
    ("linear", (2, 3, 4, 5)), ("sum_norm", (2, 3, 4, 2)), ("attention", (2, 3, 4, 2, 4, True)),
    ("qkv_attention", (2, 3, 4, 2, 4)), ("mlp", ((2, 3), 4, 5, 6, 2)), ("apply_pattern", (2, 3, 4, 2, 4))], ids=str)
def test_registration_and_gradient(op, sizes, device):
    case = getattr(cases, op)(*sizes).to(device).mapped(lambda x: x.requires_grad_())
    torch.library.opcheck(getattr(torch.ops.vitsparse, f"{op}_triton").default, case.arguments)
    inputs = [x for y in case.arguments for x in (y if isinstance(y, list) else [y])
              if isinstance(x, Tensor) and x.requires_grad]

    def gradients(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum((x * x).sum() for x in flat(results)), inputs)

    exact = gradients(getattr(reference, op)(*case.arguments))
    found = gradients(getattr(torch.ops.vitsparse, f"{op}_triton")(*case.arguments))
    for one, other in zip(found, exact, strict=True):
        assert error(one, other.cpu().double()) <= 1e-5


def test_compiles_into_one_graph(device):
    x, weight, bias, activation = cases.linear(2, 3, 4, 5).to(device).arguments
    op = torch.ops.vitsparse.linear_triton
    compiled = torch.compile(lambda x: op(x * 2, weight, bias, activation) + 1, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), op(x * 2, weight, bias, activation) + 1)


def test_the_contracts_reach_the_kernels(device):
    x, weight, bias, activation = cases.linear(2, 3, 4, 5).to(device).arguments
    assert error(linear(x, weight, bias, activation, "triton"),
                 reference.linear(x, weight, bias, activation).cpu().double()) <= 1e-5
    q, k, v, heads, scale, keep = cases.attention(2, 3, 4, 2, 4, True).to(device).arguments
    assert error(attention(q, k, v, heads, scale, "triton", keep),
                 reference.attention(q, k, v, heads, scale, keep).cpu().double()) <= 1e-5
