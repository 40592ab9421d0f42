"""run_program: whole programs against the model or the ops they stand for, and programs that must be refused."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.ops import program_writer as w
from tests.ops.kernels import HERE, error, needs_cpu_ops, opcheck_reads_grad, poison
from vitsparse.backends import native, reference
from vitsparse.errors import InputError
from vitsparse.model.vit import ViT
from vitsparse.ops.cpu_isa import using_cpu_isa
from vitsparse.ops.run_program import profile_program, run_program

pytestmark = needs_cpu_ops


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def small_vit(**changes) -> ViT:
    sizes = {"img_size": 16, "patch_size": 4, "num_classes": 7, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model = ViT(**{**sizes, **changes})
    with torch.no_grad():
        for parameter in model.parameters():  # so that biases, norms and positions matter
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def images_for(model: ViT, batch: int) -> torch.Tensor:
    return torch.randn(batch, model.config.in_chans, model.config.img_size, model.config.img_size)


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("changes", [
    {}, {"global_pool": "avg"}, {"img_size": 15, "patch_size": 5, "in_chans": 1, "embed_dim": 20, "num_heads": 4},
    {"img_size": 32, "patch_size": 16, "embed_dim": 40, "num_heads": 2, "mlp_ratio": 1.3},
])
def test_a_dense_model(level, changes):
    model = small_vit(**changes)
    program = w.write_dense(model)
    images = images_for(model, 3)
    with torch.no_grad(), using_cpu_isa(level):
        exact = model.double()(images.double())
        poison((3, 1, exact.shape[1]))
        assert error(run_program(images, program.words(), program.blob())[:, 0], exact) <= 1e-5


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_split_over_threads_changes_nothing(threads, count):
    """Batches that are run together, batches that are split, and groups of images inside a share: the same bits."""
    model = small_vit()
    program = w.write_dense(model)
    words, blob, images = program.words(), program.blob(), images_for(model, 70)
    threads(1)
    alone = torch.cat([run_program(image[None], words, blob) for image in images])
    threads(count)
    for batch in (1, 2, 3, 4, 5, 9, 70):
        poison((batch, 1, 7))
        assert torch.equal(run_program(images[:batch], words, blob), alone[:batch])
    assert run_program(images[:0], words, blob).shape == (0, 1, 7)


def wide_vit(**changes) -> ViT:
    """Enough arithmetic in one image for several threads to share it."""
    return small_vit(**{"img_size": 64, "patch_size": 8, "embed_dim": 128, "num_heads": 4, **changes})


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_threads_that_share_an_image_give_the_bits_of_one(threads, count, pool):
    """As many slices of rows as threads, more threads than slices, and numbers that divide nothing."""
    model = wide_vit(global_pool=pool)
    program, images = w.write_dense(model), images_for(model, 7)
    words, blob = program.words(), program.blob()
    threads(1)
    alone = torch.cat([run_program(image[None], words, blob) for image in images])
    with torch.no_grad():
        assert error(alone[:, 0], model.double()(images.double())) <= 1e-5
    threads(count)
    for batch in (1, 2, 3, 7):
        for _ in range(5):
            assert torch.equal(run_program(images[:batch], words, blob), alone[:batch])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_python_threads_may_run_programs_at_once(threads, count):
    """Eight of them, on one model: images that are shared, and batches that are run in groups."""
    model = wide_vit(depth=1)
    program = w.write_dense(model)
    words, blob, images = program.words(), program.blob(), images_for(model, 6)
    expected = {batch: run_program(images[:batch], words, blob) for batch in (1, 3, 6)}

    def forward(batch):
        torch.set_num_threads(count)  # a thread of Python begins with torch's default
        return batch, run_program(images[:batch], words, blob)

    with ThreadPoolExecutor(8) as pool:
        for batch, result in pool.map(forward, [1, 3, 6] * 40):
            assert torch.equal(result, expected[batch])


def images_of(rows: int, width: int):
    """A writer whose first slot holds [rows, width] of each image: one channel, patch 1, so `width` is 1 a patch."""
    p = w.ProgramWriter(1, rows)
    tokens = p.slot(rows * rows, 1)
    p.step(w.PATCHES, p.view(tokens), 1)
    source = p.slot(rows * rows, width)
    weight = torch.randn(width, 1)
    p.linear(p.view(tokens), p.view(source), weight)
    images = torch.randn(3, 1, rows, rows)
    return p, source, images, images.reshape(3, rows * rows, 1) @ weight.T


@pytest.mark.parametrize("level", HERE)
def test_steps_that_only_pruned_models_have(level):
    """Constant queries, a constant pattern, sources summed in place with an offset, bias per token."""
    p, source, images, x = images_of(3, 10)
    constant, pattern = torch.randn(4, 10), torch.softmax(torch.randn(2, 4, 9), -1)
    offset, weight, bias = torch.randn(4, 10), torch.randn(10, 10), torch.randn(4, 10)
    q, stream, both, out = p.constant(constant), p.slot(4, 10), p.slot(4, 20), p.result(4, 10)
    p.step(w.ATTENTION, p.view(q), p.view(source), p.view(source), p.view(stream), 2, 5, w.bits(0.3))
    p.step(w.APPLY_PATTERN, p.store(pattern), p.view(source), p.view(both, col0=10), 2, 5)
    p.step(w.FILL, p.store(offset), p.view(both), 10)
    sources = [p.view(stream), p.view(both), p.view(both, col0=10), p.view(q)]
    p.sum_norm(sources, offset, 10, 1e-5, p.view(stream), p.view(both))
    p.linear(p.view(both), p.view(out), weight, bias, gelu=True)
    p.linear(p.view(stream, 0, 4), p.view(out), weight, accumulate=True)

    x, constant, pattern, offset, weight, bias = (t.double() for t in (x, constant, pattern, offset, weight, bias))
    attended = reference.attention(constant[None], x, x, 2, 0.3)
    applied = reference.apply_pattern(pattern, x)
    sources = [attended, offset.expand(3, 4, 10), applied, constant.expand(3, 4, 10)]
    total, normed = reference.sum_norm(sources, offset, 1e-5)
    exact = reference.linear(normed, weight, bias, "gelu") + reference.linear(total, weight, None)
    with using_cpu_isa(level):
        poison((3, 4, 10))
        assert error(run_program(images, p.words(), p.blob()), exact) <= 1e-5


def test_sum_norm_of_nothing_but_an_offset_and_of_many_sources():
    p, source, images, x = images_of(2, 6)
    offset = torch.randn(4, 6)
    out, alone = p.result(4, 6), p.slot(4, 6)
    p.sum_norm([], offset, 6, 1e-5, p.view(alone), w.NONE)
    p.sum_norm([p.view(source)] * 40 + [p.view(alone)], None, 6, 1e-5, w.NONE, p.view(out))
    exact = reference.sum_norm([40 * x.double(), offset.double().expand(3, 4, 6)], None, 1e-5)[1]
    assert error(run_program(images, p.words(), p.blob()), exact) <= 1e-5


PARTS = [  # added, taken away, an offset (per row, or one), sum stored, sum normalised; three sources, parts from 3 on
    ([0, 1, 2], [], True, True, True),
    ([], [], True, False, True),
    ([3], [1], True, True, True),
    ([5, 0], [2, 3], False, True, False),
    ([0, 1], [6], False, False, True),
    ([], [2, 1], "alike", True, True),
    ([], [], False, True, False),
]


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("width", [10, 64, 150])
def test_sums_in_parts(level, width):
    """Sums that add and take away sources and earlier sums; stored, normalised, or both."""
    p, source, images, x = images_of(3, width)
    other, constant, weight = p.slot(9, width), torch.randn(9, width), torch.randn(width, width) / 5
    p.linear(p.view(source), p.view(other), weight)
    terms = [x.double(), x.double() @ weight.double().T, constant.double().expand(3, 9, width)]
    out = p.result(9, width * sum(stored + normed for *_, stored, normed in PARTS))
    parts, exact = [], []
    for adds, minuses, with_offset, stored, normed in PARTS:
        offset = torch.randn(*([] if with_offset == "alike" else [9]), width) if with_offset else None
        r = sum((terms[i] for i in adds), torch.zeros(3, 9, width).double()) - sum(terms[i] for i in minuses)
        terms.append(r if offset is None else r + offset)
        views = [p.view(out, col0=width * (len(exact) + i)) for i in range(stored + normed)]
        parts.append(w.Part(adds, minuses, offset, views[0] if stored else w.NONE, views[-1] if normed else w.NONE))
        exact += [terms[-1]] * stored + [reference.sum_norm([terms[-1]], None, 1e-5)[1]] * normed
    p.sum_norms([p.view(source), p.view(other), p.view(p.constant(constant))], width, 1e-5, parts)
    native.core().validate_program(p.words().numpy(), p.blob().numel())
    with using_cpu_isa(level):
        poison((3, 9, width * len(exact)))
        assert error(run_program(images, p.words(), p.blob()), torch.cat(exact, -1)) <= 1e-5


def refused(p: w.ProgramWriter, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        native.core().validate_program(p.words().numpy(), p.blob().numel())


def test_terms_of_a_sum_must_exist():
    for part, match in ((w.Part([2]), "index of a term: expected 0 to 1, found 2"),
                        (w.Part([0], [-1]), "index of a term: expected 0 to 1, found -1"),
                        (w.Part([1]), "an earlier part that stores its sum, found 1"),
                        (w.Part([0], offset=torch.zeros(3, 6)), "offset rows .if not 1.: expected 4, found 3"),
                        (w.Part([0], offset=torch.zeros(4, 0)), None)):
        p, source, _, _ = images_of(2, 6)
        first, second = p.slot(4, 6), p.result(4, 6)
        part.total = p.view(second)
        p.sum_norms([p.view(source)], 6, 1e-5, [w.Part([0], normed=p.view(first)), part])
        if match is None:  # an offset past the end of the weights
            p.weights, p.stored = p.weights[:1], 16
            match = "numbers left"
        refused(p, match)


def two_products(reads: str, first: str, second: str) -> w.ProgramWriter:
    """Two products in one wave, over parts of a source and of a shared slot."""
    p, source, *_ = images_of(2, 6)
    shared, out, weight = p.slot(4, 12), p.result(4, 6), torch.randn(6, 6)
    views = {"source": p.view(source), "its top": p.view(source, 0, 2), "left": p.view(shared),
             "right": p.view(shared, col0=6), "top": p.view(shared, 0, 2), "bottom": p.view(shared, 2, 2),
             "out": p.view(out)}
    with p.together():
        p.linear(views[reads], views[first], weight)
        p.linear(views[reads], views[second], weight)
    return p


@pytest.mark.parametrize("views", [("source", "left", "right"), ("its top", "top", "bottom"),
                                   ("source", "out", "left")])
def test_steps_of_one_wave_may_share_what_they_read(views):
    p = two_products(*views)
    assert native.core().validate_program(p.words().numpy(), p.blob().numel())["waves"] == 3


@pytest.mark.parametrize("views", [("source", "left", "left"), ("source", "out", "out"), ("its top", "top", "top")])
def test_steps_of_one_wave_must_leave_each_other_alone(views):
    refused(two_products(*views), r"step 3 \(LINEAR\), destination: expected memory that no other step of the wave "
                                  r"touches, and step 2 does|step 2 .* and step 3 does")


def test_slots_that_overlap_in_memory_are_one_another():
    p = two_products("source", "out", "left")
    p.slots[2] = (w.ARENA, p.slots[1][1] + 16, 4, 12)
    refused(p, "destination: expected memory that")


NORM_LINEAR_WORDS = [  # which word of its operands, what instead, and why not
    (0, 2, "number of terms taken away: expected 0 to 0, found 1"), (1, 2, "number of terms taken away"),
    (2, 7, "destination"), (2, 0, "expected 1 to"), (4, 1 << 20, "numbers left"), (5, 3, "offset rows"),
    (6, 1, "memory that the step does not read"), (8, 3, "rows of the sum"), (14, 0, "outputs"),
    (15, -1, "packed offset"), (16, 1 << 20, "bias offset"), (17, 4, "bias rows: expected 1, found 4"),
    (18, 2, "activation"), (21, 3, "rows of a source")]


@pytest.mark.parametrize(("word", "value", "match"), NORM_LINEAR_WORDS)
def test_norms_in_front_of_products_are_checked(word, value, match):
    p = w.ProgramWriter(1, 2, target="cuda")
    tokens, source, total, out = p.slot(4, 1), p.slot(4, 6), p.slot(4, 6), p.result(4, 5)
    p.step(w.PATCHES, p.view(tokens), 1)
    p.linear(p.view(tokens), p.view(source), torch.randn(6, 1))
    p.norm_linear([p.view(source)], [p.view(p.constant(torch.randn(4, 6)))], p.view(out),
                  (torch.randn(5, 6), torch.randn(5)), offset=torch.randn(6), total=p.view(total))
    core, size = native.core(), p.blob().numel()
    assert core.validate_program(p.words().numpy(), size, "cuda")["waves"] == 3
    with pytest.raises(ValueError, match=r"step 2 \(NORM_LINEAR\), opcode: expected 1 to 7"):
        core.validate_program(p.words().numpy(), size + 1000, "cpu")  # its matrices are larger
    p.steps[-1][3 + word] = value
    with pytest.raises(ValueError, match=rf"step 2 \(NORM_LINEAR\), .*{match}"):
        core.validate_program(p.words().numpy(), size, "cuda")


@pytest.mark.parametrize(("step", "wave", "expected"), [(0, 1, "0 to 0"), (1, 2, "0 to 1"), (2, 0, "1 to 2"),
                                                        (2, -1, "1 to 2"), (2, 4, "1 to 2")])
def test_waves_are_numbered_through(step, wave, expected):
    p, source, *_ = images_of(2, 6)
    p.linear(p.view(source), p.view(p.result(4, 6)), torch.randn(6, 6))
    p.steps[step][1] = wave
    refused(p, rf"step {step} \(\w+\), wave: expected {expected}, found {wave}")


def test_a_source_that_a_part_overwrites_is_gone_for_the_next():
    p, source, images, x = images_of(2, 6)
    here, out = p.view(source), p.result(4, 6)
    p.sum_norms([here], 6, 1e-5, [w.Part([0, 0], total=here), w.Part([1], total=p.view(out))])
    native.core().validate_program(p.words().numpy(), p.blob().numel())
    assert error(run_program(images, p.words(), p.blob()), 2 * x.double()) <= 1e-6
    p.steps.pop()
    p.sum_norms([here], 6, 1e-5, [w.Part([0, 0], total=here), w.Part([0], total=p.view(out))])
    refused(p, "a source that no earlier part overwrites")


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_profile_has_a_time_for_each_wave(threads, batch):
    model = wide_vit(depth=1)
    program, images = w.write_dense(model), images_for(model, batch)
    words, blob = program.words(), program.blob()
    for count in (1, 2):
        threads(count)
        times = profile_program(images, words, blob, repeats=3)
        assert times.dtype == torch.float64
        assert times.shape == (native.core().validate_program(words.numpy(), blob.numel())["waves"],)
        assert bool((times >= 0).all())
        assert 0 < times.sum() < 1e7
    with pytest.raises(InputError, match="at least 1"):
        profile_program(images, words, blob, repeats=0)
    with pytest.raises(InputError, match="numbers left"):
        profile_program(images, words, blob[:100])


@opcheck_reads_grad
def test_registration_passes_opcheck():
    model = small_vit(depth=1)
    program = w.write_dense(model)
    arguments = (images_for(model, 2), program.words(), program.blob())
    torch.library.opcheck(torch.ops.vitsparse.run_program.default, arguments,
                          test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(torch.ops.vitsparse.profile_program.default, (*arguments, 2),
                          test_utils=("test_schema", "test_faketensor"))


HOSTILE = (-(2**63), -(2**40), -2, -1, 0, 1, 2, 3, 2**20, 2**20 + 1, 2**31, 2**32 + 1, 2**48, 2**62, 2**63 - 1)


def test_no_single_word_can_lead_outside_memory():
    """Each word of a program replaced by each hostile value: refused, or run without harm."""
    model = small_vit(img_size=8, embed_dim=6, num_heads=2, depth=1, global_pool="avg", mlp_ratio=1.0)
    program = w.write_dense(model)
    words, blob, images = program.words(), program.blob(), images_for(model, 1)
    core, refused, ran = native.core(), 0, 0
    for i, value in itertools.product(range(len(words)), HOSTILE):
        changed = words.clone()
        changed[i] = value
        try:
            core.validate_program(changed.numpy(), blob.numel())
        except ValueError:
            refused += 1
            continue
        if i not in (4, 5, 6):  # a larger arena or other images are legal and of no interest here
            run_program(images, changed, blob)
            ran += 1
    assert refused > 5 * ran > 0


def test_truncated_and_extended_programs_are_refused():
    program = w.write_dense(small_vit(depth=1))
    words, blob = program.words(), program.blob()
    for length in range(len(words)):
        with pytest.raises(ValueError, match="program: "):
            native.core().validate_program(words[:length].numpy(), blob.numel())
    with pytest.raises(ValueError, match="no words after the last step, found 1"):
        native.core().validate_program(torch.cat([words, words[:1]]).numpy(), blob.numel())
    with pytest.raises(ValueError, match="numbers left, of 100"):
        native.core().validate_program(words.numpy(), 100)


def test_refusals_name_the_step_the_field_and_both_sides():
    p, source, images, _ = images_of(2, 6)
    out = p.result(4, 5)
    p.linear(p.view(source), p.view(out), torch.randn(6, 6))
    with pytest.raises(InputError, match=r"step 2 \(LINEAR\), destination: expected 1 to 5, found 6"):
        run_program(images, p.words(), p.blob())
    p.steps[-1:] = []
    p.linear(p.view(source), p.view(source), torch.randn(6, 6))
    with pytest.raises(ValueError, match="memory that the step does not read"):
        native.core().validate_program(p.words().numpy(), p.blob().numel())
    p.steps[-1:] = []
    with pytest.raises(InputError, match=r"images: expected \[batch, 1, 2, 2\]"):
        run_program(images[..., 1:], p.words(), p.blob())
    with pytest.raises(InputError, match="float32"):
        run_program(images.double(), p.words(), p.blob())
    assert native.core().validate_program(p.words().numpy(), p.blob().numel()) == {
        "channels": 1, "image_size": 2, "rows": 4, "width": 5, "waves": 2}
