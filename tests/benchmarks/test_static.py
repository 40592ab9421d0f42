"""benchmarks.static: how machine code is read, how times are predicted, what is printed and kept."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.static import __main__ as static
from benchmarks.static import devices, machine_code, plans, tables
from benchmarks.static.devices import DEVICES, LAUNCH_SECONDS, Work
from vitsparse.compiler.steps import Linear, View, Weight
from vitsparse.model.vit import ViT

T4, RTX_3070, H200 = DEVICES
SASS = """
Fatbin elf code:
================
arch = sm_75
		Function : _Z1ai
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED"
        /*0000*/                   MOV R1, c[0x0][0x28] ;       /* 0x00000a0000017a02 */
                                                                /* 0x000fe40000000f00 */
        /*0010*/               @P0 HMMA.1688.F32 R4, R2, R3, R4 ;   /* 0x00 */
        /*0020*/              @!P1 STL [R1], R2 ;               /* 0x00 */
        /*0030*/                   EXIT ;                       /* 0x00 */
arch = sm_86
		Function : _Z1ai
        /*0000*/                   LDGSTS.E.BYPASS.128 [R1], [R2.64] ;   /* 0x00 */
        /*0010*/                   HMMA.16816.F32 R4, R2, R3, R4 ;   /* 0x00 */
arch = sm_90a
		Function : _Z1ai
        /*0000*/              @UP0 HGMMA.64x64x16.F32 R24, gdesc[UR8], R24, gsb0 ;   /* 0x00 */
		Function : _Z1bv
        /*0000*/                   EXIT ;                       /* 0x00 */
"""
RESOURCES = "".join(f"arch = sm_{arch}\n Function {name}:\n  REG:{registers} STACK:{stack} SHARED:0 LOCAL:0\n"
                    for arch, name, registers, stack in (("75", "_Z1ai", 32, 16), ("86", "_Z1ai", 40, 0),
                                                         ("90a", "_Z1ai", 90, 0), ("90a", "_Z1bv", 8, 0)))


def test_machine_code_is_counted_for_each_kernel_and_architecture(monkeypatch, tmp_path):
    texts = {"--dump-sass": SASS, "--dump-resource-usage": RESOURCES}
    monkeypatch.setattr(machine_code, "_lines", lambda option, library: iter(texts[option].splitlines()))
    monkeypatch.setattr(machine_code, "demangled", lambda names: {name: name[3] for name in names})
    found = {(kernel.name, kernel.arch): kernel for kernel in machine_code.kernels.__wrapped__(tmp_path)}
    assert found.keys() == {("a", "75"), ("a", "86"), ("a", "90a"), ("b", "90a")}
    spills, copies, hopper = (found["a", arch] for arch in ("75", "86", "90a"))
    assert (spills.registers, spills.stack, spills.hmma, spills.local, spills.code_bytes) == (32, 16, 1, 1, 64)
    assert (copies.hmma, copies.copies, copies.local, copies.hgmma) == (1, 1, 0, 0)
    assert (hopper.hgmma, hopper.hmma, found["b", "90a"].hgmma) == (1, 0, 0)


def test_names_are_made_short():
    mangled = "_ZN9vitsparse4cuda12_GLOBAL__N_111noop_kernelI6__halfEEvNS_10NoopParamsIT_EE"
    assert machine_code.demangled((mangled,))[mangled] == "noop_kernel<half>"
    linear = "_ZN9vitsparse4cuda13linear_kernelILNS0_5LevelE75E13__nv_bfloat16Lb1EEEvNS0_12LinearParamsE"
    assert machine_code.demangled((linear,))[linear] == "linear_kernel<75, bfloat16, true>"


def test_the_longest_of_three_limits_decides():
    compute, memory, nothing = Work(int(65e9), 1000), Work(1000, int(320e6)), Work(1000, 1000)
    assert compute.predicted(T4) == pytest.approx(1e-3)
    assert memory.predicted(T4) == pytest.approx(1e-3)
    assert nothing.predicted(T4, launches=2) == 2 * LAUNCH_SECONDS
    assert [work.bound(T4) for work in (compute, memory, nothing)] == ["compute", "memory", "launch"]


def test_idle_multiprocessors_compute_nothing():
    work = Work(int(65e9), 1000)
    assert work.predicted(T4, blocks=T4.multiprocessors // 2) == pytest.approx(2e-3)
    assert work.predicted(T4, blocks=10 * T4.multiprocessors) == pytest.approx(1e-3)


def test_every_architecture_has_a_limit_of_shared_memory():
    assert devices.SHARED_LIMITS == {"75": 65536, "86": 101376, "90": 232448, "90a": 232448}


def test_work_of_a_product():
    step = Linear(View("x", (0, 65), (0, 256)), View("y", (0, 65), (0, 768)), Weight("w", ((0, 768),), ((0, 256),)))
    assert plans.work_of(step, 2) == Work(2 * 2 * 65 * 256 * 768, 2 * (2 * 65 * (256 + 768) + 256 * 768))


@pytest.fixture(scope="module")
def rows():
    return list(plans.rows())


def test_plans_move_every_matrix_of_the_model():
    weights = {name: p for name, p in ViT(**plans.SHAPE).named_parameters() if name.endswith("weight") and p.ndim > 1}
    matrices = sum(weight.numel() for weight in weights.values())
    (plan,) = (plan for circuit, target, plan in plans.circuit_plans() if (circuit, target) == ("full", "gpu"))
    assert sum(map(plans._weights, plan.steps)) == matrices


def test_a_plan_takes_no_less_than_its_products_and_its_launches(rows):
    for row in rows:
        device = next(device for device in DEVICES if device.name == row["device"])
        products = 1e12 * row["mflop_per_image"] * row["batch"] / device.flops
        assert min(row["graph_us"], row["one_kernel_us"]) >= products - 0.1
        assert row["graph_us"] >= 1e6 * LAUNCH_SECONDS * row["steps"] - 0.1


def test_what_is_kept_is_json_and_what_is_printed_names_every_section(rows):
    kernel = {"name": "linear_kernel<75, half>", "arch": "75", "registers": 100, "stack": 0, "shared": 0,
              "code_bytes": 1600, "hmma": 16, "hgmma": 0, "local": 0, "copies": 0}
    call = {"op": "linear", "shape": "half qkv", "batch": 1, "dtype": "float16", "device": "T4", "flops": 10**6,
            "bytes": 10**6, "predicted_us": 3.1, "bound": "memory",
            "launches": [{"kernel": "linear_kernel<75, half>", "blocks": 60, "threads": 256, "shared": 24576}]}
    triton = {"op": "linear", "case": "65x256x768", "arch": "86", "kernel": "linear_kernel", "registers": 64,
              "stack": 0, "tiles": {"BLOCK_M": 64, "num_warps": 4}, "shared": 4096, "products": 8}
    found = {"made_by": {"commit": "abc"}, "kernels": [kernel], "triton": [triton], "launches": [call], "plans": rows}
    kept = json.loads(static.as_json(found))
    assert kept.pop("format") == static.FORMAT
    assert kept.pop("version") == static.VERSION
    assert kept == found
    page = tables.page(found)
    assert "Nothing here was measured on a GPU" in page
    assert "linear_kernel<75, half>  75          100" in page
    assert "M=64 warps=4" in page
    assert "half qkv" in page
    assert "found_nodes" in page


def test_columns_are_aligned():
    lines = list(tables.table([{"name": "a", "us": 1.25}, {"name": "longer", "us": 100.0}]))
    assert lines == ["name       us", "a         1.2", "longer  100.0"]


def test_nothing_is_predicted_in_other_dtypes():
    from benchmarks.static.launches import Call, Launch

    launch = Launch("linear_kernel<75, float>", 10, 256, 0)
    call = Call("linear", "half", 1, torch.float32, T4, (launch,), Work(1, 1))
    assert "predicted_us" not in call.row()
    assert call.row()["launches"] == [vars(launch)]
