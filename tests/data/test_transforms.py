"""Each augmentation against torchvision.transforms.v2 on fixed parameters; tolerances are thrice what was measured."""

from __future__ import annotations

import functools

import pytest
import torch

from vitsparse.data import draws
from vitsparse.data import transforms as T

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 64, 48)


@pytest.fixture
def uniform():
    return functools.partial(draws.uniform, 0, 0, torch.arange(4000))


def whole(images: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[0, 0, *images.shape[-2:]]]).expand(len(images), 4)


def test_to_float_and_normalize_equal_torchvision(v2):
    raw = torch.randint(0, 256, (4, 10, 12, 3), dtype=torch.uint8)
    pixels = v2.functional.to_dtype(raw.permute(0, 3, 1, 2), torch.float32, scale=True)
    assert torch.equal(T.to_float(raw), pixels)
    assert torch.equal(T.normalize(pixels, MEAN, STD), v2.functional.normalize(pixels, MEAN, STD))


def crop_and_rotate(images: torch.Tensor, boxes: torch.Tensor, degrees: torch.Tensor | None = None) -> torch.Tensor:
    return T.resample(images, T.source_maps(boxes, degrees, images.shape[-2:]))


def test_flip_equals_torchvision(v2):
    raw, chosen = torch.randint(0, 256, (6, 10, 12, 3), dtype=torch.uint8), torch.tensor([1, 0, 1, 1, 0, 0]).bool()
    flipped = T.flip(raw, chosen)
    expected = v2.functional.horizontal_flip(raw[chosen].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.equal(flipped[chosen], expected)
    assert torch.equal(flipped[~chosen], raw[~chosen])


@pytest.mark.parametrize("antialias", [False, True])
def test_crop_equals_torchvision(images, v2, antialias):
    """Measured 3.3e-6, with and without antialiasing: there is nothing to antialias in an enlargement."""
    boxes = torch.tensor([[0, 0, 64, 48], [3, 5, 20, 30], [40, 10, 24, 38], [0, 0, 1, 1], [63, 47, 1, 1],
                          [10, 0, 54, 47]])
    expected = torch.stack([v2.functional.resized_crop(image, *box, size=[64, 48], antialias=antialias)
                            for image, box in zip(images, boxes.tolist(), strict=True)])
    torch.testing.assert_close(crop_and_rotate(images, boxes), expected, rtol=0, atol=1e-5)


def test_a_hundred_drawn_crops_equal_torchvision(v2):
    """Measured 1.2e-7."""
    images = torch.rand(100, 3, 64, 64)
    uniform = functools.partial(draws.uniform, 0, 0, torch.arange(100))
    boxes = T.draw_crop(uniform, (0.08, 1.0), (3 / 4, 4 / 3), (64, 64))
    expected = torch.stack([v2.functional.resized_crop(image, *box, size=[64, 64], antialias=False)
                            for image, box in zip(images, boxes.tolist(), strict=True)])
    torch.testing.assert_close(crop_and_rotate(images, boxes), expected, rtol=0, atol=5e-7)


def test_rotation_equals_torchvision_inside_the_image(images, v2):
    """Measured 3.7e-6 where torchvision's reading does not touch the black outside; beyond, both are black."""
    degrees = torch.tensor([0.0, 15.0, -15.0, 90.0, 45.0, -3.3])

    def rotated(batch):
        return torch.stack([v2.functional.rotate(image, float(angle), v2.InterpolationMode.BILINEAR)
                            for image, angle in zip(batch, degrees, strict=True)])

    ours, theirs, cover = crop_and_rotate(images, whole(images), degrees), rotated(images), rotated(images * 0 + 1)
    inside, outside = cover > 1 - 1e-6, cover == 0
    assert inside.float().mean() > 0.8
    torch.testing.assert_close(ours[inside], theirs[inside], rtol=0, atol=1.2e-5)
    assert ours[outside].abs().max() == 0
    assert outside.float().mean() > 0.02


def test_crop_and_rotation_together_read_where_geometry_says():
    """A picture whose value is its x (or y) coordinate is read exactly by bilinear interpolation."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(30.0), indexing="ij")
    ramps = torch.stack([x, y])[None]
    box, angle = torch.tensor([[8, 5, 20, 18]]), torch.tensor([20.0])
    ours = crop_and_rotate(ramps, box, angle)[0]
    cos, sin = torch.cos(torch.deg2rad(angle)), torch.sin(torch.deg2rad(angle))
    px, py = x - 14.5, y - 19.5
    from_x, from_y = cos * px - sin * py, sin * px + cos * py  # in output pixels from the centre
    expected = torch.stack([5 + (from_x + 15) * 18 / 30 - 0.5, 8 + (from_y + 20) * 20 / 40 - 0.5])
    inside = (from_x.abs() < 14) & (from_y.abs() < 19)
    assert inside.float().mean() > 0.7
    torch.testing.assert_close(ours[:, inside], expected[:, inside], rtol=0, atol=2e-4)
    assert ours[:, (from_x.abs() > 15.01) | (from_y.abs() > 20.01)].abs().max() == 0


def test_noise_is_clipped_like_torchvision(images, v2):
    noise = torch.randn_like(images) * 0.3
    state = torch.get_rng_state()
    expected = v2.functional.gaussian_noise(images, mean=0.0, sigma=0.3, clip=True)
    torch.set_rng_state(state)
    assert torch.equal(T.add_noise(images, torch.randn_like(images) * 0.3), expected)
    assert T.add_noise(images, noise).min() == 0
    assert T.add_noise(images, noise).max() == 1


def test_erase_equals_torchvision(images, v2):
    boxes = torch.tensor([[0, 0, 64, 48], [3, 5, 20, 30], [40, 10, 24, 38], [0, 0, 0, 0], [63, 47, 1, 1],
                          [10, 0, 5, 47]])
    expected = torch.stack([v2.functional.erase(image, *box, v=torch.zeros(3, 1, 1))
                            for image, box in zip(images, boxes.tolist(), strict=True)])
    assert torch.equal(T.erase(images, boxes), expected)


def test_crop_boxes_follow_the_distribution(uniform):
    scale, ratio, size = (0.08, 1.0), (3 / 4, 4 / 3), (64, 64)
    boxes = T.draw_crop(uniform, scale, ratio, size)
    top, left, height, width = boxes.unbind(1)
    assert (boxes[:, :2] >= 0).all()
    assert (top + height <= 64).all()
    assert (left + width <= 64).all()
    area, log_ratio = height * width / 64**2, (width / height).log()
    assert area.min() > 0.07
    assert log_ratio.abs().max() < 0.34  # log(4/3) and rounding to whole pixels
    assert abs(log_ratio.mean()) < 0.01
    reference = _torchvision_crops(scale, ratio, size, 4000)
    ref_area = reference[:, 2] * reference[:, 3] / 64**2
    assert abs(area.mean() - ref_area.mean()) < 4 * ref_area.std() * (2 / 4000) ** 0.5
    assert abs(top.double().mean() - reference[:, 0].double().mean()) < 4 * top.double().std() * (2 / 4000) ** 0.5


def _torchvision_crops(scale, ratio, size, count):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    crop, image = v2.RandomResizedCrop(size, scale, ratio), torch.empty(3, *size)
    parameters = [crop.make_params([image]) for _ in range(count)]
    return torch.tensor([[p[name] for name in ("top", "left", "height", "width")] for p in parameters])


def test_a_crop_that_never_fits_is_the_whole_image(uniform):
    boxes = T.draw_crop(uniform, (1.0, 1.0), (3.0, 4.0), (64, 64))
    assert (boxes == torch.tensor([0, 0, 64, 64])).all()


def test_erase_boxes_follow_probability_and_scale(uniform):
    boxes = T.draw_erase(uniform, 0.25, (0.02, 0.33), (0.3, 3.3), (64, 64))
    area = boxes[:, 2] * boxes[:, 3] / 64**2
    assert abs((area > 0).double().mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert area[area > 0].min() > 0.015
    assert area.max() < 0.34
    assert (boxes[:, 2:] < 64).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 64).all()


def test_flips_and_angles_follow_their_distribution(uniform):
    assert abs(T.draw_flip(uniform, 0.3).double().mean() - 0.3) < 4 * (0.21 / 4000) ** 0.5
    degrees = T.draw_rotation(uniform, 15.0).double()
    assert degrees.abs().max() <= 15
    assert abs(degrees.mean()) < 4 * 15 / (3 * 4000) ** 0.5
    assert degrees.std() == pytest.approx(15 / 3**0.5, rel=0.05)
