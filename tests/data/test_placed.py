"""Where pixels are read from, and that a batch makes no GPU wait: a meta device stands for it, as it has no values."""

from __future__ import annotations

import collections
import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitsparse.data import Augmentation, Batches, TrainStream, batches, placed
from vitsparse.data.placed import Placed, fits
from vitsparse.data.ranks import Ranks

EVERYTHING = Augmentation(flip=0.5, crop_scale=(0.3, 1.0), rotation_degrees=15, noise_std=0.05, erase_prob=0.5,
                          cutmix_alpha=1.0, mixup_alpha=0.8)
STEPS_AT_ONCE = 4


class Crossings(TorchDispatchMode):
    """Counts the operators that have to do with two kinds of device."""

    def __init__(self, found: collections.Counter[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.found[function.overloadpacket.__name__] += 1
        return result


class Lists(TorchFunctionMode):
    """Counts the tensors that are made elsewhere than on the CPU from numbers of Python."""

    def __init__(self, found: collections.Counter[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.__name__ in ("tensor", "as_tensor", "new_tensor") and result.device.type != "cpu":
            self.found[function.__name__] += 1
        return result


@contextlib.contextmanager
def crossings():
    """All that crosses between devices meanwhile, by name. What needs a value raises on a meta device anyway."""
    found: collections.Counter[str] = collections.Counter()
    with Crossings(found), Lists(found):
        yield found


@pytest.fixture
def stream(pictures, monkeypatch):
    monkeypatch.setattr(batches, "DRAWN_AT_ONCE", 8 * STEPS_AT_ONCE)
    return TrainStream(pictures, 8, seed=0, num_classes=5, augmentation=EVERYTHING, device="meta")


@pytest.mark.parametrize("crossing", [
    lambda there: torch.ones(3).to(there.device), lambda there: there + torch.ones(()),
    lambda there: there.copy_(torch.ones(3)), lambda there: there.new_tensor([1, 2]),
    lambda there: torch.tensor(1.0, device=there.device)])
def test_what_crosses_is_counted(crossing):
    with crossings() as found:
        there = torch.ones(3, device="meta") + 1
        assert not found
        crossing(there)
    assert sum(found.values()) == 1


@pytest.mark.parametrize("waiting", [lambda there: there.sum().item(), lambda there: there[there > 1],
                                     lambda there: bool(there.any()), lambda there: there.cpu()])
def test_what_waits_for_a_value_raises(waiting):
    with pytest.raises((NotImplementedError, RuntimeError)):
        waiting(torch.ones(3, device="meta"))


@pytest.mark.parametrize("ranks", [Ranks(), Ranks(1, 2)])
def test_once_the_images_are_there_nothing_crosses(stream, ranks):
    stream = dataclasses.replace(stream, ranks=ranks)
    with crossings() as found:
        next(stream.epoch(0))
        assert found
        found.clear()
        for images, targets in stream.epoch(1):
            assert images.device.type == targets.device.type == "meta"
            assert images.shape == (len(targets), 3, 16, 16) == (8 // ranks.world, 3, 16, 16)
    assert not found


def test_batches_for_measuring_cross_once_too(pictures):
    measured = Batches(pictures, 16, device="meta", limit=40)
    with crossings() as found:
        next(iter(measured))
        found.clear()
        assert [len(labels) for _, labels in measured] == [16, 16, 8]
    assert not found


def test_without_room_only_a_batch_and_its_numbers_cross(stream, monkeypatch):
    monkeypatch.setattr(placed, "fits", lambda size, device: False)
    next(stream.epoch(0))  # statistics and the table of the noise
    with crossings() as found:
        count = len(list(stream.epoch(1)))
    chunks = -(-count // STEPS_AT_ONCE)
    assert found == {"_to_copy": 3 * count + chunks}  # pixels, labels, indices; indices of what is drawn


@pytest.mark.parametrize("rows_at_once", [7, 50, 2048])
def test_a_copy_holds_the_same_as_the_memory_map(pictures, tmp_path, monkeypatch, rows_at_once):
    monkeypatch.setattr(placed, "ROWS_AT_ONCE", rows_at_once)
    np.save(tmp_path / "images.npy", pictures.images)
    mapped = dataclasses.replace(pictures, images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    rows = torch.tensor([3, 41, 0, 3])
    for resident in (False, True):
        pixels, labels = Placed(mapped, "cpu", 42, resident).take(rows)
        assert np.array_equal(pixels.numpy(), pictures.images[rows.numpy()])
        assert labels.tolist() == pictures.labels[rows.numpy()].tolist()


def test_a_gpu_keeps_room_for_the_model(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (400, 1000))
    assert fits(100, torch.device("cuda"))
    assert not fits(101, torch.device("cuda"))
    assert not fits(1, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [True, False])
def test_a_gpu_never_waits(stream, monkeypatch, resident):
    monkeypatch.setattr(placed, "fits", lambda size, device: resident)
    stream = dataclasses.replace(stream, device="cuda")
    next(stream.epoch(0))
    mode = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("error")
        assert len(list(stream.epoch(1))) == stream.steps_per_epoch
    finally:
        torch.cuda.set_sync_debug_mode(mode)
