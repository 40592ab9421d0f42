"""Corrupted images: what each does, that it does it again, and that it belongs to the image and not to its batch."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2.functional import gaussian_blur

from vitsparse.data.corruption import (
    CORRUPTIONS,
    Blur,
    MeanImage,
    Noise,
    OtherClass,
    Permute,
    SwapPatches,
    corruption_named,
)
from vitsparse.errors import InputError

SEEDS = st.integers(0, 2**31)


def images_of(count: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def places(corrupted: torch.Tensor, images: torch.Tensor) -> list[int]:
    """Which of ``images`` each corrupted one is."""
    return [next(j for j, image in enumerate(images) if torch.equal(image, found)) for found in corrupted]


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_each_gives_other_images_of_the_same_kind_and_the_same_again(name, dtype):
    images, labels = images_of(6).to(dtype), torch.tensor([0, 0, 1, 2, 1, 0])
    corrupt = corruption_named(name, patch_size=2, batches=[(images_of(5, seed=1), None)])
    before, found = images.clone(), corrupt(images, labels)
    assert (found.shape, found.dtype) == (images.shape, dtype)
    assert not torch.isclose(found, images).flatten(1).all(1).any()
    assert torch.equal(images, before)
    torch.rand(3)  # what others draw in between says nothing
    assert torch.equal(corrupt(images, labels), found)
    if name not in ("blur", "mean_image"):
        other = corruption_named(name, patch_size=2, batches=[], seed=1)(images, labels)
        assert not torch.equal(other, found)


@pytest.mark.parametrize("name", ["swap_patches", "blur", "noise", "mean_image"])
def test_most_do_not_depend_on_where_batches_are_cut(name):
    images = images_of(7)
    corrupt = corruption_named(name, patch_size=4, batches=[(images, None)])
    parts = [corrupt(part, None) for part in images.split([1, 4, 2])]
    assert torch.equal(torch.cat(parts), corrupt(images, None))


@given(labels=st.lists(st.integers(0, 3), min_size=2, max_size=12).filter(lambda x: len(set(x)) > 1), seed=SEEDS)
def test_other_class_takes_one_of_another_class(labels, seed):
    labels, images = torch.tensor(labels), images_of(len(labels), 2)
    partners = places(OtherClass(seed)(images, labels), images)
    assert (labels[partners] != labels).all()


def test_every_image_of_another_class_has_its_chance():
    labels = torch.tensor([0, 1, 1, 1, 0])
    images = images_of(5, 2)
    partners = torch.tensor([places(OtherClass(seed)(images, labels), images) for seed in range(300)])
    counts = torch.stack([partners[:, 0].eq(j).sum() for j in range(5)])
    assert counts[[0, 4]].tolist() == [0, 0]
    assert counts[1:4].min() > 60  # of 300, a third each: 100, give or take 8


@given(count=st.integers(2, 9), seed=SEEDS)
def test_permute_moves_every_image_and_loses_none(count, seed):
    images = images_of(count, 2)
    partners = places(Permute(seed)(images), images)
    assert sorted(partners) == list(range(count))
    assert all(i != j for i, j in enumerate(partners))


@given(seed=SEEDS, patch=st.sampled_from((2, 4)))
def test_swapped_patches_are_the_same_patches_in_another_order_for_each_image(seed, patch):
    images = images_of(3, 8)
    found = SwapPatches(patch, seed)(images)
    def patches(x):
        return rearrange(x, "b c (h p1) (w p2) -> b (h w) (c p1 p2)", p1=patch, p2=patch)
    before, after = patches(images), patches(found)
    orders = [places(after[i], before[i]) for i in range(3)]
    assert [sorted(order) for order in orders] == [list(range(len(before[0])))] * 3
    if patch == 2:  # of 16! orders
        assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize(("sigma", "size"), [(0.5, 8), (1.0, 9), (4.0, 8), (2.0, 32)])
def test_blur_is_that_of_torchvision(sigma, size):
    images = images_of(2, size)
    radius = min(int(-(-3 * sigma // 1)), size - 1)
    expected = gaussian_blur(images, [2 * radius + 1] * 2, [sigma] * 2)
    assert torch.allclose(Blur(sigma)(images), expected, atol=1e-6)


def test_noise_has_its_size_and_differs_between_images():
    images = torch.zeros(4, 3, 64, 64) + torch.arange(4)[:, None, None, None]
    noise = Noise(0.5)(images) - images
    assert torch.allclose(noise.flatten(1).std(1), torch.full((4,), 0.5), rtol=0.03)
    assert noise.flatten(1).mean(1).abs().max() < 0.02
    assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 0.05


def test_mirrored_images_are_other_images():
    images = images_of(2)
    mirrored = Noise()(images.flip(-1)) - images.flip(-1)
    assert not torch.allclose(mirrored, Noise()(images) - images, atol=0.1)


def test_the_mean_image_does_not_depend_on_the_batches():
    images = images_of(7)
    mean = MeanImage.of([(images[:3], None), (images[3:], None)])
    assert torch.allclose(mean.mean, images.mean(0), atol=1e-6)
    assert torch.equal(mean(images[:2])[0], mean.mean)


@pytest.mark.parametrize(("use", "message"), [
    (lambda x: OtherClass()(x, None), r"another class\n[\s\S]*labels \[4\]\n  found: NoneType"),
    (lambda x: OtherClass()(x, torch.zeros(3)), r"found: shape \[3\]"),
    (lambda x: OtherClass()(x, torch.full((4,), 7)), "4 images of class 7"),
    (lambda x: Permute()(x[:1]), "single image"),
    (lambda x: SwapPatches(3)(x), "a divisor of 8 and 8"),
    (lambda x: SwapPatches(0)(x), "a divisor of 8 and 8"),
    (lambda x: Blur(0.0), "where: sigma"),
    (lambda x: Noise(float("nan")), "where: std"),
    (lambda x: MeanImage.of([]), "no images"),
    (lambda x: corruption_named("blurr", patch_size=2, batches=[]), "did you mean 'blur'"),
])
def test_what_cannot_be_corrupted_is_refused(use, message):
    with pytest.raises(InputError, match=message):
        use(images_of(4))
