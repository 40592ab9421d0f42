"""The emulated device: it computes what a GPU would, and does not let faults pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tolerances import error

THREADS = 128
DTYPES = [(torch.float32, 75), (torch.float16, 75), (torch.float16, 80), (torch.bfloat16, 80)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_noop(ops_on, dtype):
    x = torch.randn(3, 1001, device=ops_on.device).to(dtype)
    assert torch.equal(ops_on.noop(x), x)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize(("dtype", "level"), DTYPES)
@pytest.mark.parametrize("shape", [(64, 16, 64), (37, 9, 150), (1, 1, 1)])
def test_tiles_and_products(emulated_ops, shape, dtype, level, by_rows, seed):
    rows, columns, depth = shape
    a, b = torch.randn(rows, depth).to(dtype), torch.randn(columns, depth).to(dtype)
    out = torch.full((rows, columns), torch.nan)
    aligned = depth % 8 == 0 and columns % 8 == 0
    with emulated_ops.at_level(level), emulated_ops.seed(seed):
        emulated_ops.product(a, b.T.contiguous() if by_rows else b, out, by_rows, aligned)
    assert error(out, a.double() @ b.double().T) < 1e-6  # products of half numbers are exact, and sums are in float32


@pytest.mark.parametrize("level", [75, 80])
def test_products_with_sums_in_float16(emulated_ops, level):
    a, b, out = torch.randn(64, 64).half(), torch.randn(16, 64).half(), torch.empty(64, 16)
    with emulated_ops.at_level(level), emulated_ops.half_accumulate():
        emulated_ops.product(a, b, out, False, True)
    sums = torch.zeros(64, 16).half()
    step = 8 if level == 75 else 16
    for k in range(0, 64, step):
        sums = (sums.float() + a[:, k:k + step].float() @ b[:, k:k + step].float().T).half()
    assert error(out, sums) < 1e-3  # one number in a few is rounded the other way
    assert error(out, a.double() @ b.double().T) > 1e-5


def run(ops, name: str, blocks: int = 1, shared_bytes: int = 4 * THREADS, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(blocks * THREADS)
    out, counter = torch.full_like(x, torch.nan), torch.zeros(1 + x.numel(), dtype=torch.int32)
    with ops.seed(seed):
        ops.mistake(x, out, counter, name, blocks, shared_bytes)
    return x, out


def warpgroup(slip: str) -> str:
    return f"multiply_in_warpgroup<Slip::{slip}>"


TILES = 128 * (64 + 128) + 2 * 1024
RIGHT = ["reverse<true>", "reverse_twice<true>", "reverse_copied<true>", "swap_in_warp<true>",
         "reverse_in_grid<Arrive::all>"]
IN_GRIDS = [*(f"reverse_in_grid<Arrive::{arrive}>" for arrive in ("all", "not_all", "nobody")), "same_number_twice"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", RIGHT)
def test_threads_that_wait_for_each_other(emulated_ops, name, seed):
    x, out = run(emulated_ops, name, 3 if name in IN_GRIDS else 1, seed=seed)
    expected = x.view(-1, 2).flip(1).flatten() if "swap" in name else x.flip(0) + ("twice" in name)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("seed", range(6))
def test_memory_may_be_used_again_behind_a_barrier_of_the_grid(emulated_ops, seed):
    x, out = run(emulated_ops, "write_after_reads<true>", 4, seed=seed)
    assert torch.equal(out, torch.cat([x[:THREADS].repeat(3), torch.zeros(THREADS)]))
    with pytest.raises(RuntimeError, match="a race in global memory"):
        run(emulated_ops, "write_after_reads<false>", 4, seed=seed)


@pytest.mark.parametrize(("name", "message"), [
    ("copy_without_wait", r"ended before its copies.*copy_16 at .*mistakes.cu:\d+"),
    ("two_barriers", r"waits at the barrier of .*mistakes.cu:\d+ and thread \d+ at that of .*mistakes.cu:\d+"),
    ("absent_from_barrier", r"deadlock(.|\n)*__syncthreads at .*mistakes.cu(.|\n)*load_acquire at"),
    ("two_instructions", r"(?s)different instructions.*0000ffff: __syncwarp at .*ffff0000: __shfl_xor_sync"),
    ("ended_lane", r"(?s)deadlock.*lanes ffffffdf: __shfl_xor_sync.*lanes 00000020: ended"),
    ("misaligned_matrix", r"load_matrices at .*byte 4 of 512 of shared memory is not aligned"),
    ("matrix_outside", r"byte 512 of 512 of shared memory is outside"),
    ("misaligned_vector", r"not aligned.*mistakes.cu:\d+"),
    ("outside<threads>", r"thread \d+ writes byte 512 of 512 bytes of shared memory at mistakes.cu:\d+"),
    ("outside<-1>", r"byte -4 of"),
    ("null_pointer", r"block 0, thread \d+: "),
    ("behind_tensor", r"block 0, thread 127: an address that is not its own"),
    ("zero_division", r"division by zero"),
    ("index_out_of_bounds", r"index out of bounds at .*mistakes.cu:\d+"),
    ("endless_stack", r"stack is used up"),
    ("reverse<false>", r"a race in shared memory.* mistakes.cu:\d+, and then.* mistakes.cu:\d+"),
    ("reverse_twice<false>", r"a race in shared memory"),
    ("swap_in_warp<false>", r"a race in shared memory"),
    ("reverse_in_grid<Arrive::nobody>", r"a race in global memory, byte \d: block \d, thread \d+ writes at"),
    ("same_number_twice", r"a race in global memory.*block 0.*block 1"),
    ("reverse_in_grid<Arrive::not_all>", r"(?s)deadlock.*load_acquire at .*mistakes.cu"),
])
def test_faults_are_reported(emulated_ops, name, message):
    with pytest.raises(RuntimeError, match=message):
        run(emulated_ops, name, blocks=3 if name in IN_GRIDS else 1)
    run(emulated_ops, "reverse<true>")  # and the device goes on


@pytest.mark.parametrize("seed", range(3))
def test_products_of_warpgroups(emulated_ops, seed):
    x, out = run(emulated_ops, warpgroup("none"), shared_bytes=TILES, seed=seed)
    thread = torch.arange(THREADS)
    assert torch.equal(out, x.half().float()[16 * (thread // 32) + thread % 32 // 4])


@pytest.mark.parametrize(("slip", "message"), [
    ("no_fence", r"writes at mistakes.cu:\d+ without fence_async_proxy\(\) before .* inlined at mistakes.cu:\d+"),
    ("no_barrier", "a race in shared memory"),
    ("absent", "product 0 of a warpgroup.* has other operands"),
    ("misaligned", "a tile does not begin at a multiple of 1024"),
])
def test_faults_of_warpgroups(emulated_ops, slip, message):
    with pytest.raises(RuntimeError, match=message):
        run(emulated_ops, warpgroup(slip), shared_bytes=TILES)


@pytest.mark.parametrize("name", ["uninitialised", "reverse_copied<false>"])
def test_what_nobody_wrote_is_nan(emulated_ops, name):
    assert run(emulated_ops, name)[1].isnan().all()


def test_sums_of_products_that_nobody_waited_for_are_nan(emulated_ops):
    assert run(emulated_ops, warpgroup("too_early"), shared_bytes=TILES)[1].isnan().all()


@pytest.mark.parametrize("name", ["endless_loop", "endless_reading"])
def test_launches_without_end(emulated_ops, name):
    with emulated_ops.seconds(1), pytest.raises(RuntimeError, match=r"thread \d+: the launch took longer than 1 s"):
        run(emulated_ops, name)
    run(emulated_ops, "reverse<true>")


def test_launches_that_ask_for_too_much(emulated_ops):
    with pytest.raises(RuntimeError, match="99 is the limit"), emulated_ops.shared_limit(99):
        run(emulated_ops, "reverse<true>")
    with pytest.raises(RuntimeError, match="cooperative launch of 3 blocks, where 2 run at once"), \
            emulated_ops.multiprocessors(1), emulated_ops.shared_limit(1024):
        run(emulated_ops, "reverse_in_grid<Arrive::all>", blocks=3)
