"""The three forms of Tiny ImageNet, on archives of three classes made on the fly, and a few real images."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitsparse import data
from vitsparse.data import decoded
from vitsparse.errors import InputError

KINDS = ("zip", "folder", "parquet")


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def load(cache):
    def load(split, root, **options):
        return data.load("tiny_imagenet", split, root=root, cache=cache, **options)
    return load


def entry(cache: Path) -> Path:
    """The only folder in the cache."""
    (folder,) = cache.iterdir()
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_gives_the_same_images(archive, tmp_path, load, kind):
    root = archive.write(kind, tmp_path / "root")
    train, val, test = (load(split, root) for split in data.SPLITS)
    assert train.classes == tuple(f"name of {wnid}" for wnid in archive.classes)
    assert train.labels.tolist() == [0, 1, 2] * len(archive.numbers)
    assert val.labels.tolist() == test.labels.tolist() == archive.val_labels
    expected = [archive.files[f"train/{wnid}/images/{wnid}_{number}.JPEG"]
                for number in archive.numbers for wnid in archive.classes]
    assert np.array_equal(train.images, np.stack([pixels(encoded) for encoded in expected]))
    assert np.array_equal(val.images[4], pixels(archive.files["val/images/val_4.JPEG"]))
    assert np.array_equal(val.images, test.images)
    assert not train.images.flags.writeable


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


@pytest.mark.parametrize("kind", KINDS)
def test_greyscale_becomes_rgb(archive, tmp_path, load, kind):
    train = load("train", archive.write(kind, tmp_path / "root"))
    assert Image.open(io.BytesIO(archive.files[archive.grey])).mode == "L"
    grey = [i for i, image in enumerate(train.images) if (image == image[..., :1]).all()]
    assert grey == [3]  # image number 1 of class 0


def test_the_manifest_says_what_the_images_were_made_from(archive, tmp_path):
    manifests = []
    for kind in KINDS:
        root, cache = archive.write(kind, tmp_path / kind), tmp_path / f"cache of {kind}"
        data.load("tiny_imagenet", "train", root=root, cache=cache)
        manifests.append(json.loads((entry(cache) / "manifest.json").read_text()))
    assert len({manifest["source"]["sha256"] for manifest in manifests}) == 1
    assert len({manifest["images"]["sha256"] for manifest in manifests}) == 1
    assert [manifest["source"]["kind"] for manifest in manifests] == list(KINDS)
    assert all(manifest["count"] == 15 and manifest["skipped"] == [] for manifest in manifests)


@pytest.mark.parametrize("kind", KINDS)
def test_the_split_of_the_seed(archive, tmp_path, load, kind):
    root = archive.write(kind, tmp_path / "root")
    train, val, test = (load(split, root, splits="seed") for split in data.SPLITS)
    everything = load("train", root)
    assert np.array_equal(train.images, everything.images[:9])  # numbers 0, 1, 419
    assert np.array_equal(test.images, everything.images[9:])  # numbers 420, 499
    assert train.labels.tolist() == [0, 1, 2] * 3
    assert test.labels.tolist() == [0, 1, 2] * 2
    assert np.array_equal(val.images, load("val", root).images)


@pytest.mark.parametrize("kind", KINDS)
def test_num_classes_decodes_only_the_first_by_wnid(archive, tmp_path, load, cache, kind):
    root = archive.write(kind, tmp_path / "root")
    train = load("train", root, num_classes=2)
    assert train.classes == ("name of n01000001", "name of n02000001")
    assert train.labels.tolist() == [0, 1] * len(archive.numbers)
    assert np.load(entry(cache) / "images.npy", mmap_mode="r").shape == (10, 64, 64, 3)
    val = load("val", root, num_classes=2)
    assert val.labels.tolist() == [label for label in archive.val_labels if label < 2]
    whole = load("train", root)
    assert np.array_equal(train.images, whole.take_classes(2).images)


def test_parquet_without_names_takes_image_numbers_from_the_order(archive, tmp_path, load):
    """The five images of a class count as 0 to 4 then, instead of 0 to 499; the order stays the same."""
    named, unnamed = (archive.write_parquet(tmp_path / str(flag), named=flag) for flag in (True, False))
    for split in ("train", "val"):
        one, two = load(split, named), load(split, unnamed)
        order = np.arange(len(one)) if split == "train" else np.lexsort((one.labels, occurrence(one.labels)))
        assert np.array_equal(one.images[order], two.images)
        assert np.array_equal(one.labels[order], two.labels)


def occurrence(labels: np.ndarray) -> np.ndarray:
    """How many earlier entries have the same label."""
    return np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)])


def test_root_may_be_the_archive_or_a_folder_around_it(archive, tmp_path, load):
    path = archive.write_zip(tmp_path / "tiny-imagenet-200.zip")
    outer = archive.write_folder(tmp_path / "outer")
    for root in (path, tmp_path, outer, outer / "tiny-imagenet-200"):
        assert len(load("val", root)) == 6


def test_the_second_load_reads_the_cache(archive, tmp_path, load, monkeypatch):
    root = archive.write_zip(tmp_path / "images.zip")
    first = load("train", root)
    monkeypatch.setattr(decoded, "decode", None)
    second = load("train", root)
    assert np.array_equal(first.images, second.images)
    assert isinstance(second.images, np.memmap)


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_source_is_decoded_anew(archive, tmp_path, load, kind):
    root = archive.write(kind, tmp_path / "root")
    load("train", root)
    name = "train/n01000001/images/n01000001_0.JPEG"
    archive.files[name] = archive.jpeg(77)
    archive.write(kind, tmp_path / "root")
    assert np.array_equal(load("train", root).images[0], pixels(archive.files[name]))


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "images.npy").unlink(),
    lambda folder: (folder / "images.npy").write_bytes((folder / "images.npy").read_bytes()[:-1]),
    lambda folder: (folder / "images.npy").write_bytes(bytes((folder / "images.npy").stat().st_size)),
    lambda folder: (folder / "labels.safetensors").unlink(),
    lambda folder: (folder / "manifest.json").unlink(),
    lambda folder: (folder / "manifest.json").write_text("{"),
    lambda folder: (folder / "manifest.json").write_text('{"format": "vitsparse.images", "version": 1}'),
    lambda folder: (folder / "manifest.json").write_text('{"format": "vitsparse.images", "version": 99}'),
])
def test_a_damaged_cache_is_made_anew(archive, tmp_path, load, cache, damage):
    root = archive.write_zip(tmp_path / "images.zip")
    expected = np.array(load("val", root).images)
    damage(entry(cache))
    assert np.array_equal(load("val", root).images, expected)
    decoded.verify(entry(cache))


def test_verify_finds_a_changed_pixel(archive, tmp_path, load, cache):
    load("val", archive.write_zip(tmp_path / "images.zip"))
    decoded.verify(entry(cache))
    with open(entry(cache) / "images.npy", "rb+") as file:
        file.seek(5000)
        value = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([value ^ 1]))
    with pytest.raises(InputError, match=r"has changed[\s\S]*images\.npy"):
        decoded.verify(entry(cache))


def test_the_cache_is_where_the_user_keeps_caches(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    data.load("tiny_imagenet", "val", root=archive.write_zip(tmp_path / "images.zip"))
    assert (entry(tmp_path / "xdg" / "vitsparse") / "images.npy").is_file()


def test_another_process_may_be_faster(archive, tmp_path, load, cache, monkeypatch):
    root = archive.write_zip(tmp_path / "images.zip")
    load("val", root)
    done = entry(cache).rename(tmp_path / "done")
    decode_into = decoded._decode_into

    def overtaken(folder, *arguments):
        decode_into(folder, *arguments)
        shutil.copytree(done, folder.parent.parent / folder.parent.name[1:].rpartition(".")[0])

    monkeypatch.setattr(decoded, "_decode_into", overtaken)
    assert load("val", root).labels.tolist() == archive.val_labels
    entry(cache)


def test_real_images(tiny_imagenet_folder, load):
    """200 validation images of the first four classes, against a plain reading of the shard."""
    parquet = pytest.importorskip("pyarrow.parquet")
    val = load("val", tiny_imagenet_folder, num_classes=4)
    assert val.images.shape == (200, 64, 64, 3)
    assert np.bincount(val.labels).tolist() == [50] * 4
    assert val.classes[0] == "goldfish, Carassius auratus"
    rows = parquet.read_table(tiny_imagenet_folder / "val-00000-of-00001.parquet").slice(0, 1000).to_pylist()
    chosen = [row for row in rows if row["label"] < 4]
    assert len(chosen) > 10
    for i, row in enumerate(chosen):
        assert val.labels[i] == row["label"]
        assert np.array_equal(val.images[i], pixels(row["image"]["bytes"]))
