"""The Triton kernels as machine code for Ampere and Hopper: tensor cores, no spilled registers, room enough."""

from __future__ import annotations

import pytest
import torch

from vitsparse.backends import triton

if "triton is not installed" in triton.why_not():
    pytest.skip("triton is not installed", allow_module_level=True)
if triton.interpreted():
    pytest.skip("the interpreter does not compile", allow_module_level=True)

from tests.triton import cases
from tests.triton.ahead import compiling
from vitsparse._triton import mlp

SHARED = {86: 99 * 1024, 90: 227 * 1024}  # bytes of shared memory a block may have
WITHOUT_PRODUCTS = "sum_norm_kernel"
CASES = list(cases.aot_cases())


def check(found, capability: int) -> None:
    assert found
    for kernel in found:
        assert kernel.stack == 0, f"{kernel.kernel} spills at {kernel.tiles}"
        assert kernel.shared <= SHARED[capability], f"{kernel.kernel} at {kernel.tiles}"
        assert (kernel.products > 0) == (kernel.kernel != WITHOUT_PRODUCTS), f"{kernel.kernel} at {kernel.tiles}"


@pytest.mark.parametrize(("capability", "dtype"), [(86, torch.float16), (90, torch.float16), (86, torch.bfloat16)])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}: {case.label}")
def test_first_choice(case, capability, dtype):
    """What runs where nothing is measured."""
    with compiling(capability) as found:
        case.mapped(lambda x: x.to(dtype)).launch()
    check(found, capability)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}: {case.label}")
def test_every_candidate_fits_on_an_ampere_card(case):
    with compiling(86, every_candidate=True) as found:
        case.mapped(lambda x: x.half()).launch()
    check(found, 86)


@pytest.mark.parametrize("tiles", mlp.HOPPER_TILES, ids=str)
def test_hopper_multiplies_with_whole_warp_groups(tiles):
    case = cases.mlp((2, 65), 256, 1024, 256, senders=3).mapped(lambda x: x.half())
    with compiling(90) as found:
        mlp.fused(tiles, *case.arguments)
    check(found, 90)
    assert "wgmma.mma_async" in found[0].ptx


@pytest.mark.parametrize("case", [cases.linear(2, 65, 256, 768), cases.qkv_attention(2, 65, 256, 8, 32),
                                  cases.mlp((2, 65), 256, 1024, 256)], ids=lambda case: case.op)
def test_half_accumulation_is_in_the_machine_code(case, monkeypatch):
    with compiling(86) as exact:
        case.mapped(lambda x: x.half()).launch()
    monkeypatch.setattr(f"vitsparse._triton.{case.op}.half_accumulate", lambda x: True)
    with compiling(86) as rough:
        case.mapped(lambda x: x.half()).launch()
    product = "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"
    assert product in rough[0].ptx
    assert product not in exact[0].ptx


@pytest.mark.parametrize("case", [
    cases.linear(1, 1, 1, 1), cases.linear(1, 65, 256, 10, "per token", "none"), cases.sum_norm(1, 1, 1, 1),
    cases.attention(1, 1, 1, 1, 1, True), cases.qkv_attention(1, 1, 1, 1, 1, True),
    cases.qkv_attention(1, 65, 3, 1, 16), cases.mlp((1, 1), 1, 1, 1), cases.mlp((1, 5), 7, 9, 11, 2, False),
    cases.apply_pattern(1, 1, 1, 1, 1)], ids=lambda case: f"{case.op}: {case.label}")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sizes_of_one_and_ragged_ones_compile(case, dtype):
    """Triton makes constants of arguments that are 1, which changes the types in a kernel: the interpreter does not."""
    with compiling(86) as found:
        case.mapped(lambda x: x.to(dtype)).launch()
    assert all(kernel.stack == 0 and kernel.shared <= SHARED[86] for kernel in found)


@pytest.mark.parametrize("case", [cases.linear(1, 65, 256, 256), cases.attention(1, 65, 65, 2, 64),
                                  cases.qkv_attention(1, 65, 64, 2, 32), cases.mlp((1, 65), 256, 512, 256)],
                         ids=lambda case: case.op)
def test_float32_has_room_and_is_no_tf32(case):
    with compiling(86) as found:
        case.launch()
    assert all(kernel.shared <= SHARED[86] for kernel in found)
    assert not any(kernel.products for kernel in found)
