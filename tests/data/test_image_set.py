from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from vitsparse.data import Batches, ImageSet
from vitsparse.errors import InputError


@pytest.mark.parametrize(("change", "message"), [
    ({"images": np.zeros((50, 16, 16, 3), np.float32)}, r"images has the wrong type[\s\S]*float32 with 4"),
    ({"images": np.zeros((50, 16, 16), np.uint8)}, r"images has the wrong type[\s\S]*uint8 with 3"),
    ({"images": [[1]]}, r"images has the wrong type[\s\S]*list"),
    ({"labels": np.zeros(50, np.int32)}, r"labels has the wrong type[\s\S]*int32"),
    ({"images": np.zeros((0, 16, 16, 3), np.uint8), "labels": np.zeros(0, np.int64)}, "images is empty"),
    ({"labels": np.zeros(49, np.int64)}, r"differ in number[\s\S]*50 labels[\s\S]*49"),
    ({"labels": np.full(50, 5)}, r"a label is outside the classes[\s\S]*image 0[\s\S]*0 to 4[\s\S]*5"),
    ({"labels": np.array([0] * 20 + [-1] + [0] * 29)}, r"outside the classes[\s\S]*image 20[\s\S]*-1"),
    ({"mean": (0.5,)}, r"mean does not fit[\s\S]*3 finite values"),
    ({"std": (0.1, float("nan"), 0.1)}, "std does not fit"),
    ({"std": (0.1, 0.0, 0.1)}, "std must be positive"),
])
def test_parts_that_do_not_fit_together_are_refused(pictures, change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(pictures, **change)


def test_repr_says_what_it_is(pictures):
    assert repr(pictures) == "ImageSet(pictures/train: 50 images of 16x16x3, 5 classes)"


def test_subset_and_take_classes(pictures):
    chosen = pictures.subset([7, 3])
    assert chosen.labels.tolist() == [2, 3]
    assert np.array_equal(chosen.images, pictures.images[[7, 3]])
    assert np.shares_memory(pictures.subset(slice(10)).images, pictures.images)

    two = pictures.take_classes(2)
    assert two.classes == ("a", "b")
    assert two.labels.tolist() == [0, 1] * 10
    assert np.array_equal(two.images, pictures.images[pictures.labels < 2])
    for count in (0, 6):
        with pytest.raises(InputError, match="1 to 5"):
            pictures.take_classes(count)


def test_batches_are_normalised_in_order_and_can_be_iterated_again(pictures, v2):
    batches = Batches(pictures, 16)
    first, second = list(batches), list(batches)
    assert len(batches) == len(first) == 4
    assert [len(labels) for _, labels in first] == [16, 16, 16, 2]
    assert all(torch.equal(x, y) for a, b in zip(first, second, strict=True) for x, y in zip(a, b, strict=True))

    raw = torch.from_numpy(pictures.images).permute(0, 3, 1, 2)
    expected = v2.functional.normalize(v2.functional.to_dtype(raw, torch.float32, scale=True),
                                       list(pictures.mean), list(pictures.std))
    images, labels = (torch.cat(parts) for parts in zip(*first, strict=True))
    assert torch.equal(images, expected)
    assert images.is_contiguous()
    assert labels.tolist() == pictures.labels.tolist()


@pytest.mark.parametrize(("limit", "sizes"), [(20, [16, 4]), (16, [16]), (1, [1]), (99, [16, 16, 16, 2])])
def test_limit_takes_images_from_the_front(pictures, limit, sizes):
    batches = Batches(pictures, 16, limit=limit)
    assert [len(labels) for _, labels in batches] == sizes
    assert len(batches) == len(sizes)
    assert batches.num_images == sum(sizes)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"batch_size": 4, "limit": 0}])
def test_batches_refuse_sizes_that_are_not_positive(pictures, arguments):
    with pytest.raises(InputError, match="must be positive"):
        Batches(pictures, **arguments)


def test_a_read_only_memory_map_is_as_good_as_an_array(tmp_path, pictures):
    np.save(tmp_path / "images.npy", pictures.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    on_disk = ImageSet(mapped, pictures.labels, pictures.classes, pictures.mean, pictures.std, "pictures", "train")
    for (x, _), (y, _) in zip(Batches(on_disk, 50), Batches(pictures, 50), strict=True):
        assert torch.equal(x, y)
