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
from vitsparse.ops.run_program import run_program

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


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_split_over_threads_changes_nothing(threads, count):
    """Batches that are run together, batches that are split, and groups of images inside a share."""
    model = small_vit()
    program = w.write_dense(model)
    words, blob, images = program.words(), program.blob(), images_for(model, 70)
    threads(1)
    alone = torch.cat([run_program(image[None], words, blob) for image in images])
    threads(count)
    for batch in (1, 2, 3, 4, 5, 70):
        poison((batch, 1, 7))
        assert torch.allclose(run_program(images[:batch], words, blob), alone[:batch], atol=1e-6)
    assert run_program(images[:0], words, blob).shape == (0, 1, 7)


def test_large_steps_of_one_image_are_split_over_threads(threads):
    model = small_vit(img_size=64, patch_size=8, embed_dim=128, num_heads=4, depth=1)
    program, images = w.write_dense(model), images_for(model, 1)
    threads(2)
    with torch.no_grad():
        exact = model.double()(images.double())
    assert error(run_program(images, program.words(), program.blob())[:, 0], exact) <= 1e-5


def test_python_threads_may_run_programs_at_once():
    model = small_vit()
    program = w.write_dense(model)
    words, blob, images = program.words(), program.blob(), images_for(model, 4)
    expected = run_program(images, words, blob)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: run_program(images, words, blob), range(40)):
            assert torch.equal(result, expected)


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


@opcheck_reads_grad
def test_registration_passes_opcheck():
    model = small_vit(depth=1)
    program = w.write_dense(model)
    arguments = (images_for(model, 2), program.words(), program.blob())
    torch.library.opcheck(torch.ops.vitsparse.run_program.default, arguments,
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
    with pytest.raises(ValueError, match="floats left, of 100"):
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
