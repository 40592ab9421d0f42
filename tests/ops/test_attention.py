"""attention: every backend and instruction set against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.ops.kernels import HERE, error, needs_cpu_ops, opcheck_reads_grad, poison
from vitsparse.backends import reference
from vitsparse.errors import InputError
from vitsparse.ops.attention import attention
from vitsparse.ops.cpu_isa import using_cpu_isa

pytestmark = needs_cpu_ops


def draw(images: int, queries: int, keys: int, heads: int, head_dim: int, constant: str = "", spread: float = 2.0):
    generator = torch.Generator().manual_seed(images + 3 * queries + 7 * keys + 11 * heads + 13 * head_dim)
    sizes = {"q": queries, "k": keys, "v": keys}
    return [spread * torch.randn(1 if name in constant else images, tokens, heads * head_dim, generator=generator)
            for name, tokens in sizes.items()]


@pytest.mark.parametrize("level", HERE)
@settings(max_examples=30)
@given(images=st.integers(1, 3), queries=st.integers(1, 30), keys=st.integers(1, 40), heads=st.integers(1, 3),
       head_dim=st.integers(1, 40), constant=st.sampled_from(["", "q", "k", "v", "qk", "kv", "qkv"]))
@example(1, 17, 17, 4, 16, "").via("a tiny ViT")
@example(2, 65, 65, 2, 32, "").via("65 tokens")
@example(1, 10, 10, 3, 5, "").via("a head dimension that fills no vector")
@example(2, 1, 65, 2, 20, "").via("only the class token asks")
@example(3, 1, 1, 1, 8, "").via("one token")
@example(1, 3, 20, 2, 7, "").via("four keys behind a whole vector")
@example(1, 3, 21, 2, 7, "").via("five")
def test_cpu_equals_the_reference(level, images, queries, keys, heads, head_dim, constant):
    q, k, v = draw(images, queries, keys, heads, head_dim, constant)
    exact = reference.attention(q.double(), k.double(), v.double(), heads, head_dim**-0.5)
    with using_cpu_isa(level):
        poison(exact.shape)
        assert error(attention(q, k, v, heads, head_dim**-0.5, "cpu"), exact) <= 1e-5


@pytest.mark.parametrize("level", HERE)
@settings(max_examples=20)
@given(images=st.integers(1, 4), queries=st.integers(1, 20), keys=st.integers(1, 20), heads=st.integers(1, 4),
       head_dim=st.integers(1, 20), constant=st.sampled_from(["", "q", "kv"]))
@example(2, 65, 65, 8, 32, "").via("the usual size")
def test_heads_that_an_image_does_not_keep_give_zeros(level, images, queries, keys, heads, head_dim, constant):
    """Also where their inputs are NaN: they are not read."""
    q, k, v = draw(images, queries, keys, heads, head_dim, constant)
    images = max(x.shape[0] for x in (q, k, v))
    keep = torch.rand(images, heads, generator=torch.Generator().manual_seed(queries)) < 0.5
    all_heads = reference.attention(q.double(), k.double(), v.double(), heads, 0.3)
    exact = all_heads * keep.double().repeat_interleave(head_dim, dim=1)[:, None]
    for x in (q, k, v):
        if x.shape[0] == images:
            x.unflatten(2, (heads, head_dim)).masked_fill_(~keep[:, None, :, None], float("nan"))
    with using_cpu_isa(level):
        for given_as in (keep, keep.int(), keep.T.contiguous().T):
            poison(exact.shape)
            result = attention(q, k, v, heads, 0.3, "cpu", given_as)
            assert error(result, exact, at_least=1e-3) <= 1e-5
            assert not result.unflatten(2, (heads, head_dim)).transpose(1, 2)[~keep].any()


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("spread", [0.0, 30.0, 1e4])
def test_softmax_is_stable(level, spread):
    """Scores of +-1e8 and scores all equal: the largest is subtracted before the exponential."""
    q, k, v = draw(1, 9, 21, 2, 8, spread=spread)
    v = torch.randn(v.shape)
    exact = reference.attention(q.double(), k.double(), v.double(), 2, 1.0)
    with using_cpu_isa(level):
        assert error(attention(q, k, v, 2, 1.0, "cpu"), exact) <= (1e-5 if spread < 100 else 1e-4)


@pytest.mark.parametrize("level", HERE)
def test_nan_in_an_image_stays_in_that_image(level):
    q, k, v = draw(2, 5, 5, 1, 8)
    q[1, 2, 3] = float("nan")
    with using_cpu_isa(level):
        result = attention(q, k, v, 1, 1.0, "cpu")
    assert result[0].isfinite().all()
    assert result[1, 2].isnan().all()


def test_views_of_one_wide_tensor_are_read_in_place():
    wide = torch.randn(2, 7, 3 * 12)
    q, k, v = wide.split(12, dim=2)
    exact = reference.attention(q.double(), k.double(), v.double(), 2, 0.4)
    assert error(attention(q, k, v, 2, 0.4, "cpu"), exact) <= 1e-5
    turned = wide.permute(2, 1, 0).contiguous().permute(2, 1, 0)  # no dense rows: copied
    assert error(attention(*turned.split(12, dim=2), 2, 0.4, "cpu"), exact) <= 1e-5


@pytest.mark.parametrize("constant", ["", "q", "kv"])
def test_portable_equals_the_reference(constant):
    q, k, v = (x.double() for x in draw(2, 5, 6, 3, 4, constant))
    keep = torch.tensor([[True, False, True], [False, False, True]])
    for kept in (None, keep):
        exact = reference.attention(q, k, v, 3, 0.5, kept)
        assert error(attention(q, k, v, 3, 0.5, "torch", kept), exact) <= 1e-13


@opcheck_reads_grad
def test_gradient_and_registration():
    for constant, keep in (("", None), ("k", None), ("", torch.tensor([[True, False], [False, True]]))):
        inputs = [x.requires_grad_() for x in draw(2, 3, 4, 2, 3, constant)]
        torch.library.opcheck(torch.ops.vitsparse.attention.default, (*inputs, 2, 0.5, keep))
        found = torch.autograd.grad(attention(*inputs, 2, 0.5, "cpu", keep).square().sum(), inputs)
        exact = torch.autograd.grad(reference.attention(*inputs, 2, 0.5, keep).square().sum(), inputs)
        for one, other in zip(found, exact, strict=True):
            assert error(one, other.double()) <= 1e-5


def test_arguments_that_do_not_fit_are_refused():
    q, k, v = draw(2, 3, 4, 2, 3)
    for arguments, where in (((q, k[:, :, 1:], v, 2), "k"), ((q, k, v[:, 1:], 2), "tokens"), ((q, k, v, 4), "heads"),
                             ((q, k[:1].repeat(3, 1, 1), v, 2), "batch of q"), ((q, k.double(), v, 2), "dtype")):
        with pytest.raises(InputError, match=f"attention: {where}"):
            attention(*arguments, 0.5)
    for keep in (torch.ones(2, 3), torch.ones(1, 2), torch.ones(4)):
        with pytest.raises(InputError, match="attention: head_keep"):
            attention(q, k, v, 2, 0.5, head_keep=keep)


def test_the_kernel_itself_refuses_what_would_read_outside_memory():
    q, k, v = draw(2, 3, 4, 2, 3)
    for call in ((q, k, v, 0), (q, k, v, 4), (q, k, v[:, 1:], 2), (q[0], k, v, 2), (q, k[..., :3], v, 2)):
        with pytest.raises(RuntimeError, match="expected"):
            torch.ops.vitsparse.attention(*call, 0.5)
    for keep in (torch.ones(2, 2), torch.ones(1, 2, dtype=torch.bool), torch.ones(4, dtype=torch.bool)):
        with pytest.raises(RuntimeError, match="head_keep: expected bool"):
            torch.ops.vitsparse.attention(q, k, v, 2, 0.5, keep)
