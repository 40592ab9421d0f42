"""The training stream: what it yields, and that it is a pure function of seed, epoch, step and images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from vitsparse.data import Augmentation, Batches, TrainStream
from vitsparse.data.ranks import Ranks
from vitsparse.errors import InputError

ALONE = Augmentation(flip=0.5, crop_scale=(0.3, 1.0), rotation_degrees=15, noise_std=0.05, erase_prob=0.5)
FULL = dataclasses.replace(ALONE, cutmix_alpha=1.0, mixup_alpha=0.8)


def stream(pictures, batch_size=8, *, seed=0, augmentation=FULL, **rest) -> TrainStream:
    return TrainStream(pictures, batch_size, seed=seed, num_classes=5, augmentation=augmentation, **rest)


def equal(one, two) -> bool:
    return len(one) == len(two) and all(torch.equal(x, y) for a, b in zip(one, two, strict=True)
                                        for x, y in zip(a, b, strict=True))


def test_shapes_types_and_targets(pictures):
    batches = list(stream(pictures).epoch(0))
    assert len(batches) == stream(pictures).steps_per_epoch == 6
    for images, targets in batches:
        assert images.shape == (8, 3, 16, 16)
        assert images.dtype == targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
        assert torch.isfinite(images).all()
    assert any((targets.max(dim=1).values < 1).any() for _, targets in batches)


def test_a_stream_restarted_at_any_step_gives_the_same_bits(pictures):
    for epoch in (0, 3):
        whole = list(stream(pictures).epoch(epoch))
        assert equal(list(stream(pictures).epoch(epoch)), whole)
        for start in (1, 4, 6):
            assert equal(list(stream(pictures).epoch(epoch, start)), whole[start:])


def test_epochs_and_seeds_differ(pictures):
    first = next(stream(pictures).epoch(0))[0]
    assert not torch.equal(first, next(stream(pictures).epoch(1))[0])
    assert not torch.equal(first, next(stream(pictures, seed=1).epoch(0))[0])


def test_an_augmented_image_does_not_depend_on_its_batch(pictures):
    small, large = (torch.cat([images for images, _ in stream(pictures, size, augmentation=ALONE).epoch(2)])
                    for size in (5, 25))
    assert torch.equal(small, large)


@pytest.mark.parametrize("augmentation", [ALONE, FULL], ids=["alone", "mixed"])
@pytest.mark.parametrize("world", [2, 3])
def test_the_parts_of_all_ranks_are_the_batches_of_one_process(pictures, augmentation, world):
    parts = [stream(pictures, augmentation=augmentation, ranks=Ranks(rank, world)).epoch(1) for rank in range(world)]
    together = [tuple(map(torch.cat, zip(*batch, strict=True))) for batch in zip(*parts, strict=True)]
    assert equal(together, list(stream(pictures, augmentation=augmentation).epoch(1)))


def test_the_global_generator_is_neither_read_nor_moved(pictures):
    first = next(stream(pictures).epoch(0))
    before = torch.get_rng_state()
    second = next(stream(pictures).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert equal([first], [second])


def test_without_augmentation_an_epoch_is_the_data_set_shuffled(pictures):
    plain = TrainStream(pictures, 10, seed=0, num_classes=7)
    images, targets = (torch.cat(parts) for parts in zip(*plain.epoch(0), strict=True))
    expected, labels = next(iter(Batches(pictures, 50)))
    order = [int((expected == image).flatten(1).all(dim=1).nonzero()) for image in images]
    assert sorted(order) == list(range(50))
    assert order != list(range(50))
    assert torch.equal(targets, torch.eye(7)[labels[order]])


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Augmentation)
                                  if field.default in (0.0, None)])
def test_each_augmentation_changes_pixels_on_its_own(pictures, name):
    value = {"crop_scale": (0.1, 0.5), "rotation_degrees": 10.0}.get(name, 0.5)
    plain = next(stream(pictures, augmentation=Augmentation()).epoch(0))[0]
    changed = next(stream(pictures, augmentation=Augmentation(**{name: value})).epoch(0))[0]
    assert (plain != changed).any()


def test_drop_last(pictures):
    kept = stream(pictures, drop_last=False)
    assert kept.steps_per_epoch == 7
    assert [len(images) for images, _ in kept.epoch(0)] == [8] * 6 + [2]
    assert stream(pictures, 50).steps_per_epoch == 1


@pytest.mark.parametrize(("arguments", "message"), [
    ({"batch_size": 0}, "must be positive"), ({"batch_size": 51}, r"does not fill one batch[\s\S]*at most 50"),
    ({"num_classes": 4}, r"fewer classes[\s\S]*at least 5"),
    ({"ranks": Ranks(0, 9)}, r"every rank[\s\S]*at least 9"),
    ({"ranks": Ranks(0, 3), "drop_last": False}, r"every rank[\s\S]*found: 2")])
def test_arguments_that_cannot_work_are_refused(pictures, arguments, message):
    with pytest.raises(InputError, match=message):
        TrainStream(pictures, **{"batch_size": 8, "seed": 0, "num_classes": 5, **arguments})


@pytest.mark.parametrize("values", [
    {"flip": 1.5}, {"crop_scale": (0.0, 1.0)}, {"crop_scale": (0.5, 0.4)}, {"erase_ratio": (0.0, 1.0)},
    {"noise_std": -0.1}, {"rotation_degrees": float("nan")}, {"mixup_alpha": -1}])
def test_augmentations_out_of_range_are_refused_by_name(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Augmentation(**values)


def test_greyscale_images_stream_too():
    from vitsparse.data import load

    pytest.importorskip("sklearn")
    digits = load("digits", "val")
    images, targets = next(TrainStream(digits, 32, seed=0, num_classes=10, augmentation=FULL).epoch(0))
    assert images.shape == (32, 1, 8, 8)
    assert targets.shape == (32, 10)
    assert np.isfinite(images.numpy()).all()


@pytest.mark.gpu
def test_the_stream_on_the_gpu_agrees_with_the_cpu(pictures):
    for (x, s), (y, t) in zip(stream(pictures).epoch(0), stream(pictures, device="cuda").epoch(0), strict=True):
        torch.testing.assert_close(y.cpu(), x, rtol=0, atol=1e-4)
        torch.testing.assert_close(t.cpu(), s)
