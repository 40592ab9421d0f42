"""run_program on CUDA: each way to launch a program, against what its words mean (program_oracle.py)."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.program_oracle import Oracle
from tests.ops import program_writer as w
from tests.ops.kernels import error
from vitsparse.model.vit import ViT

AT = [(75, torch.float16), (80, torch.float16), (80, torch.bfloat16), (80, torch.float32)]
WAYS = ("steps", "waves", "persistent")


@pytest.fixture(params=AT, ids=lambda at: f"{at[0]}-{at[1]}".replace("torch.", ""))
def at(request):
    return request.param


def check(ops_on, at, p: w.ProgramWriter, batch: int, ways=WAYS, seed: int = 0) -> None:
    """All ways give what the oracle does in float64, with at most twice its error in the dtype itself."""
    level, dtype = at
    torch.manual_seed(seed)
    images = torch.randn(batch, p.channels, p.image_size, p.image_size).to(dtype)
    blob = p.blob().to(dtype)
    exact = Oracle(p, blob, images, torch.float64).run()
    plain = error(Oracle(p, blob, images, dtype).run(), exact)
    words, device = p.words(), ops_on.device
    with ops_on.at_level(level), ops_on.seed(seed):
        for how in ways:
            copy = words.to(device) if seed % 2 else None
            out = ops_on.run_program(images.to(device), words, blob.to(device), copy, how)
            assert error(out.cpu(), exact) <= (1e-5 if dtype == torch.float32 else 2 * plain + 1e-3), how


def vit(**changes) -> ViT:
    sizes = {"img_size": 8, "patch_size": 4, "num_classes": 7, "embed_dim": 32, "depth": 1, "num_heads": 2}
    model = ViT(**{**sizes, **changes})
    with torch.no_grad():
        for parameter in model.parameters():  # so that biases, norms and positions matter
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_dense_model(ops_on, at, batch):
    check(ops_on, at, w.write_dense(vit(), "cuda"), batch, seed=batch)


def test_a_dense_model_of_odd_sizes(ops_on, at):
    model = vit(img_size=15, patch_size=5, in_chans=1, embed_dim=36, num_heads=3, global_pool="avg", mlp_ratio=1.3)
    check(ops_on, at, w.write_dense(model, "cuda"), 2)


def begin(rows: int, width: int) -> tuple[w.ProgramWriter, int]:
    """A writer whose second slot holds [rows^2, width] of each image."""
    p = w.ProgramWriter(1, rows, target="cuda")
    tokens, source = p.slot(rows * rows, 1), p.slot(rows * rows, width)
    p.step(w.PATCHES, p.view(tokens), 1)
    p.linear(p.view(tokens), p.view(source), torch.randn(width, 1), torch.randn(width))
    return p, source


def test_steps_that_only_pruned_models_have(ops_on, at):
    """Constant queries and patterns, views in the middle of slots, one row, means, bias per token, sums in place."""
    p, source = begin(3, 40)
    q, both, stream, out = p.constant(torch.randn(9, 40)), p.slot(9, 80), p.slot(9, 40), p.result(11, 40)
    pattern = torch.softmax(torch.randn(2, 9, 9), -1)
    with p.together():
        p.step(w.ATTENTION, p.view(q), p.view(source), p.view(source), p.view(stream), 2, 20, w.bits(0.3))
        p.step(w.APPLY_PATTERN, p.store(pattern), p.view(source), p.view(both, col0=40), 2, 20)
        p.step(w.FILL, p.store(torch.randn(9, 40)), p.view(both), 40)
        p.step(w.MEAN_ROWS, p.view(source, 1, 7), p.view(out, 9, 1), 40)
    p.sum_norm([p.view(stream), p.view(both), p.view(both, col0=40), p.view(q)], torch.randn(9, 40), 40, 1e-5,
               p.view(stream), p.view(both))
    with p.together():
        p.linear(p.view(both), p.view(out, 0, 9), torch.randn(40, 40) / 6, torch.randn(9, 40), gelu=True)
        p.linear(p.view(stream, 4, 1), p.view(out, 10, 1), torch.randn(40, 40) / 6)
    p.linear(p.view(stream), p.view(out, 0, 9), torch.randn(40, 40) / 6, accumulate=True)
    check(ops_on, at, p, 2, seed=1)


def test_sums_in_parts(ops_on, at):
    """Parts that use sources and earlier sums, added and taken away, with an offset for each row, for all, or none."""
    p, source = begin(3, 32)
    other, out = p.slot(9, 32), p.result(9, 32 * 6)
    p.linear(p.view(source), p.view(other), torch.randn(32, 32) / 6)
    views = iter(p.view(out, col0=32 * i) for i in range(6))
    p.sum_norms([p.view(source), p.view(other), p.view(p.constant(torch.randn(9, 32)))], 32, 1e-5, [
        w.Part([0, 1, 2], [], torch.randn(9, 32), next(views), next(views)),
        w.Part([3], [1], None, next(views)),
        w.Part([4, 0] * 20, [2, 3], torch.randn(32), next(views), next(views)),  # more terms than lanes
        w.Part([], [5], None, w.NONE, next(views)),
    ])
    check(ops_on, at, p, 2, seed=2)


def test_a_sum_of_more_sources_than_a_launch_takes(ops_on, at):
    p, source = begin(2, 24)
    out = p.result(4, 24)
    p.sum_norms([p.view(source)] * 60, 24, 1e-5, [w.Part(list(range(30)), list(range(30, 58)), torch.randn(24),
                                                         normed=p.view(out))])
    check(ops_on, at, p, 1)


@pytest.mark.parametrize("batch", [1, 2])
def test_products_fused_with_attention_side_by_side(ops_on, at, batch):
    """Heads that read different inputs, in one wave; then their outputs."""
    p, source = begin(3, 32)
    z, out = p.slot(9, 64), p.result(9, 32)
    normed = [p.slot(9, 32) for _ in range(3)]
    p.sum_norms([p.view(source)], 32, 1e-5,
                [w.Part([0], [], torch.randn(9, 32), normed=p.view(slot)) for slot in normed])
    with p.together():
        for i, (heads, slot) in enumerate(zip((1, 2, 1), normed)):
            bias = None if i == 1 else torch.randn(48 * heads)
            weight = torch.randn(48 * heads, 32) / 6
            p.qkv_attention(p.view(slot), p.view(z, col0=16 * (i + (i == 2))), weight, bias, heads, 0.3)
    p.linear(p.view(z), p.view(out), torch.randn(32, 64) / 8)
    check(ops_on, at, p, batch, seed=3)


def fused_mlp(minuses: int = 1) -> w.ProgramWriter:
    p, source = begin(3, 32)
    other, out, total = p.slot(9, 32), p.result(9, 24), p.slot(9, 32)
    p.linear(p.view(source), p.view(other), torch.randn(32, 32) / 6)
    weights = torch.randn(64, 32) / 6, torch.randn(64), torch.randn(24, 64) / 8, torch.randn(24)
    p.mlp([p.view(source), p.view(other)], [p.view(source)] * minuses, p.view(out), weights, eps=1e-5,
          offset=torch.randn(9, 32), total=p.view(total))
    p.linear(p.view(total), p.view(out), torch.randn(24, 32) / 6, accumulate=True)
    return p


def test_a_fused_mlp(ops_on, at):
    check(ops_on, at, fused_mlp(), 2, seed=4)


def with_norms(width: int, offset_rows: int, total: bool, gelu: bool) -> w.ProgramWriter:
    """Two products side by side that make their own norms, of 9 rows: what the first stores is read by a third."""
    p, source = begin(3, width)
    other, stored, y, out = p.slot(9, width), p.slot(9, width), p.slot(9, 43), p.result(9, 24)
    p.linear(p.view(source), p.view(other), torch.randn(width, width) / width**0.5)
    offset = {0: None, 1: torch.randn(width), 9: torch.randn(9, width)}[offset_rows]
    with p.together():
        p.norm_linear([p.view(source), p.view(other)], [p.view(p.constant(torch.randn(9, width)))], p.view(y),
                      (torch.randn(43, width) / width**0.5, torch.randn(43)), offset=offset, gelu=gelu,
                      total=p.view(stored) if total else w.NONE)
        p.norm_linear([p.view(other, 4, 1)], [], p.view(out, 8, 1), (torch.randn(24, width) / width**0.5,))
    p.norm_linear([p.view(y, 0, 8, 3)], [], p.view(out, 0, 8), (torch.randn(24, 40) / 6, torch.randn(24)))
    if total:
        p.linear(p.view(stored, 0, 8), p.view(out, 0, 8), torch.randn(24, width) / width**0.5, accumulate=True)
    return p


NORMS = [(32, 0, False, False), (40, 1, True, True), (37, 9, True, False), (300, 9, True, True)]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("case", NORMS, ids=str)
def test_products_that_make_their_norms(ops_on, at, case, batch):
    """Widths of one slice and of several, ragged and unaligned; sums wanted or not; offsets for all rows or each."""
    check(ops_on, at, with_norms(*case), batch, seed=batch)


def joined_steps(width: int, sources: int, minuses: int) -> w.ProgramWriter:
    """A step of each kind that joins several ops, of 9 rows; of `sources` views gathered the last are taken away."""
    p, source = begin(3, width)
    slots = source, p.constant(torch.randn(9, width)), p.constant(torch.randn(9, width))
    terms = [p.view(slot) for slot in slots * sources][:sources]
    adds, less = terms[:sources - minuses], terms[sources - minuses:]
    up, down = torch.randn(70, width) / 6, torch.randn(width, 70) / 8
    z, total, y, stored, out = p.slot(9, width), p.slot(9, width), p.slot(9, 20), p.slot(9, width), p.result(9, 20)
    with p.together():
        p.qkv_attention(p.view(source), p.view(z), torch.randn(3 * width, width) / 6, None, 2, 0.3)
        p.mlp(adds, less, p.view(out), (up, torch.randn(70), down[:20]), eps=1e-5, offset=torch.randn(width),
              total=p.view(total))
    with p.together():
        p.norm_linear(adds, less, p.view(y), (torch.randn(20, width) / 6,), offset=torch.randn(9, width), gelu=True)
        p.mlp(adds, less, p.view(stored), (up, torch.randn(70), down, torch.randn(width)), eps=1e-5)
    for slot in (z, total, stored):
        p.linear(p.view(slot), p.view(out), torch.randn(20, width) / 6, accumulate=True)
    p.linear(p.view(y), p.view(out), torch.randn(20, 20) / 4, accumulate=True)
    return p


@pytest.mark.parametrize("case", [(40, 8, 2), (36, 9, 0), (40, 9, 3), (36, 48, 48), (40, 100, 30)], ids=str)
def test_steps_of_many_sources(ops_on, at, case):
    """As many as the kernels take, and more: then a step runs as its parts, and a sum as several."""
    check(ops_on, at, joined_steps(*case), 2, seed=case[1])


def test_steps_that_fit_into_no_block_run_as_their_parts(ops_on, at):
    """Heads of 80 columns, an MLP of 520 outputs, rows of 1,700 numbers to be normed; other steps before and after."""
    p, source = begin(3, 1700)
    z, y, total, out = p.slot(9, 160), p.slot(9, 520), p.slot(9, 1700), p.result(9, 24)
    with p.together():
        p.qkv_attention(p.view(source), p.view(z), torch.randn(480, 1700) / 40, torch.randn(480), 2, 0.1)
        p.norm_linear([p.view(source)] * 2, [p.view(p.constant(torch.randn(9, 1700)))], p.view(out),
                      (torch.randn(24, 1700) / 40, torch.randn(24)), offset=torch.randn(1700), total=p.view(total))
    weights = torch.randn(70, 160) / 12, torch.randn(70), torch.randn(520, 70) / 8, torch.randn(520)
    p.mlp([p.view(z), p.view(total)], [], p.view(y), weights, eps=1e-5)
    p.linear(p.view(y), p.view(out), torch.randn(24, 520) / 20, accumulate=True)
    check(ops_on, at, p, 2, seed=1)


def test_norms_of_many_rows_are_made_before_their_product(ops_on):
    """Where products have so many rows that a larger tile is done first, no block adds up rows for itself."""
    with ops_on.multiprocessors(1):
        check(ops_on, (80, torch.float16), with_norms(300, 9, True, True), 40, ways=["steps"])


def test_wide_heads(ops_on, at):
    """Of 48 and 70 columns: what the kernels of whole waves leave to others, between steps that they take."""
    p, source = begin(3, 32)
    z, y, again, qkv, out = p.slot(9, 48), p.slot(9, 70), p.slot(9, 48), p.slot(9, 210), p.result(9, 32)
    p.linear(p.view(source), p.view(qkv), torch.randn(210, 32) / 6)
    with p.together():
        p.linear(p.view(source), p.view(out), torch.randn(32, 32) / 6)
        p.qkv_attention(p.view(source), p.view(z), torch.randn(144, 32) / 6, torch.randn(144), 1, 0.2)
        p.step(w.ATTENTION, *(p.view(qkv, col0=70 * i) for i in range(3)), p.view(y), 1, 70, w.bits(0.2))
    p.linear(p.view(z), p.view(out), torch.randn(32, 48) / 7, accumulate=True)
    p.step(w.ATTENTION, p.view(z), p.view(qkv), p.view(qkv, col0=80), p.view(again), 1, 48, w.bits(0.2))
    p.linear(p.view(y), p.view(out), torch.randn(32, 70) / 8, accumulate=True)
    p.linear(p.view(again), p.view(out), torch.randn(32, 48) / 7, accumulate=True)
    check(ops_on, at, p, 2, seed=6)


@pytest.mark.parametrize("how", ["waves", "persistent"])
def test_more_steps_than_a_launch_lists(ops_on, how):
    """A wave of too many steps, and waves that end in the middle of a list."""
    p = w.ProgramWriter(1, 1, target="cuda")
    out = p.result(1000, 1)
    for begin_, count in ((0, 490), (490, 200), (690, 300), (990, 10)):
        with p.together():
            for i in range(begin_, begin_ + count):
                p.step(w.FILL, p.store(torch.randn(1)), p.view(out, i, 1), 1)
    check(ops_on, (80, torch.float16), p, 1, ways=[how])


def test_few_blocks_take_many_tasks_in_turn(ops_on):
    p = w.write_dense(vit(depth=2), "cuda")
    for count in (1, 3):
        with ops_on.multiprocessors(count):
            check(ops_on, (80, torch.float16), p, 2, ways=["persistent"], seed=count)


def test_a_step_that_no_kernel_takes_is_named(ops_on):
    images = torch.randn(1, 1, 3, 3, dtype=torch.float16, device=ops_on.device)
    p, source = begin(3, 200)
    p.step(w.ATTENTION, *[p.view(source)] * 3, p.view(p.result(9, 200)), 1, 200, w.bits(0.1))
    for how in WAYS:
        with pytest.raises(RuntimeError, match=r"step 2 \(ATTENTION\) does not fit"):
            ops_on.run_program(images, p.words(), p.blob().to(images), None, how)


def test_wrong_arguments_are_refused(ops_on):
    p = fused_mlp()
    images = torch.randn(1, 1, 3, 3, dtype=torch.float16, device=ops_on.device)
    words, blob = p.words(), p.blob().to(images)
    for arguments, match in (((images[..., 1:], words, blob), "images: expected"),
                             ((images, words, blob.float()), "dtype"),
                             ((images, words, blob, None, "waifs"), "how: expected"),
                             ((images, words, blob, words[1:].to(images.device)), "device_program"),
                             ((images, words.int(), blob), "int64"),
                             ((images, words, blob[:99]), "numbers left, of 99")):
        with pytest.raises((RuntimeError, ValueError), match=match):
            ops_on.run_program(*arguments)
    assert ops_on.run_program(images[:0], words, blob).shape == (0, 9, 24)


HOSTILE = (-(2**63), -(2**40), -1, 0, 1, 2**20 + 1, 2**32 + 1, 2**62)


@pytest.mark.parametrize("program", [fused_mlp, lambda: with_norms(32, 9, True, True)], ids=["mlp", "norm_linear"])
def test_no_single_word_can_lead_outside_memory(ops_on, program):
    """Each word of a program replaced by hostile values: refused, or run without a fault."""
    p = program()
    images = torch.randn(1, 1, 3, 3, dtype=torch.float16, device=ops_on.device)
    words, blob, refusals = p.words(), p.blob().to(images), []
    for i in range(len(words)):
        changed = words.clone()
        changed[i] = HOSTILE[i % len(HOSTILE)] if i != 4 else -1  # a larger arena is legal
        try:
            ops_on.run_program(images, changed, blob, None, "steps")
        except (RuntimeError, ValueError) as refusal:
            refusals.append(str(refusal))
    assert all("program: " in refusal or "images: expected" in refusal for refusal in refusals)
    assert len(words) / 2 < len(refusals) < len(words)
