"""Native programs: memory that is shared only by values of different lifetimes, and words that the library accepts."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiler.cases import cases
from vitsparse.backends import native
from vitsparse.compiler import back
from vitsparse.compiler.execute import take
from vitsparse.compiler.lower import float_bits, lower
from vitsparse.compiler.memory import ALIGN, place, row_stride, sizes
from vitsparse.compiler.steps import View, length
from vitsparse.ops import run_program

needs_cpu = pytest.mark.skipif(not native.available("cpu"), reason="; ".join(native.why_not("cpu")))

LIVES = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda pair: (min(pair), max(pair)))
VALUES = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.tuples(LIVES, st.integers(1, 200)), max_size=25)


@settings(max_examples=300)
@given(VALUES)
def test_values_that_live_together_never_share_memory(values):
    lives, sizes = ({name: value[i] for name, value in values.items()} for i in (0, 1))
    offsets, total = place(lives, sizes)
    assert offsets.keys() == lives.keys()
    for name, start in offsets.items():
        stop = start + sizes[name]
        assert start % ALIGN == 0
        assert 0 <= start < stop <= total
        for other, other_start in offsets.items():
            together = lives[name][0] <= lives[other][1] and lives[other][0] <= lives[name][1]
            if other != name and together:
                assert stop <= other_start or other_start + sizes[other] <= start
    most = max((sum(-(-sizes[n] // ALIGN) * ALIGN for n, (a, b) in lives.items() if a <= t <= b) for t in range(31)),
               default=0)
    assert most <= total <= sum(-(-size // ALIGN) * ALIGN for size in sizes.values())


def test_memory_is_reused():
    offsets, total = place({"a": (0, 1), "b": (1, 2), "c": (2, 3)}, {"a": 16, "b": 16, "c": 16})
    assert offsets["a"] == offsets["c"] != offsets["b"]
    assert total == 32
    assert place({}, {}) == ({}, 0)


def test_no_rows_or_values_fall_into_the_same_cache_lines():
    """A product reads 14 rows at once, a sum a hundred values; a first-level cache has eight places for equal lines."""
    widths = (96, 256, 768, 1024, 1536, 3072)
    values = {f"v{width}": View("", (0, 65), (0, width)) for width in widths}
    for width, size in zip(widths, sizes(values, 64, 192).values(), strict=False):
        stride = row_stride(width)
        assert width <= stride <= width + 16
        assert len({row * stride % 1024 for row in range(14)}) >= 4
        assert 65 * stride <= size < 65 * stride + 128
        assert len({value * size % 1024 // 64 for value in range(16)}) == 16


def test_floats_travel_as_their_bits():
    for value in (1e-6, 0.25, -3.5):
        assert struct.unpack("<f", struct.pack("<I", float_bits(value)))[0] == pytest.approx(value)


@needs_cpu
@settings(max_examples=60)
@given(cases())
def test_every_program_is_valid(case):
    core, sparse = native.core(), case.sparse("cpu")
    for which in ("logits", "features"):
        program = sparse._compiled.program(which)
        assert program.code.dtype == torch.int64
        assert program.blob.dtype == torch.float32
        core.validate_program(program.code.numpy(), len(program.blob))
        rows, width = len(range(*sparse._compiled.plan(which).output.rows)), sparse._compiled.plan(which).output.width
        assert run_program.run_program(case.images, program.code, program.blob).shape == (len(case.images), rows, width)
        with pytest.raises(ValueError, match=r"step|slot|blob|weights"):
            core.validate_program(program.code.numpy(), 0)


@needs_cpu
@settings(max_examples=40)
@given(cases())
def test_programs_do_not_depend_on_what_memory_held_before(case):
    """Of all that a program touches, only what it wrote itself reaches its result: run after one that leaves NaN."""
    sparse = case.sparse("cpu")
    program = sparse._compiled.program("logits")
    expected = run_program.run_program(case.images, program.code, program.blob)
    run_program.run_program(torch.full_like(case.images, float("nan")), program.code, program.blob)
    again = run_program.run_program(case.images, program.code, program.blob)
    assert torch.equal(again, expected)


@needs_cpu
@settings(max_examples=40)
@given(cases())
def test_a_plan_without_shared_sums_and_groups_lowers_too(case):
    """The front plan as it is stored, not only the one that runs."""
    sparse = case.sparse("cpu")
    plan = sparse._front
    parameters = {key: value.detach() for key, value in sparse.named_parameters()}
    core = native.core()
    for variant in (plan, back(plan)):
        program = lower(variant, parameters, variant.constants, core.pack_linear)
        core.validate_program(program.code.numpy(), len(program.blob))
        out = run_program.run_program(case.images, program.code, program.blob)
        assert out.shape[1] == length(variant.output.rows)
        with torch.no_grad():
            logits = sparse.forward_head(out if plan.config.global_pool == "avg" else sparse._affine(out))
        assert float((logits - case.exact).abs().max()) <= 1e-5 * float(case.exact.abs().max())


def test_ranges_are_taken_in_order():
    x = torch.arange(10)
    assert take(x, 0, ((7, 9), (0, 2))).tolist() == [7, 8, 0, 1]
