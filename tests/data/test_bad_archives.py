"""Archives that are damaged, hostile or not what they should be: each gets an error that names file and field."""

from __future__ import annotations

import errno
import os
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from vitsparse import data
from vitsparse.data import archives, decoded
from vitsparse.errors import InputError, MissingFile

KINDS = ("zip", "folder", "parquet")
VICTIM = "n02000001_419.JPEG"
VICTIM_PATH = f"train/n02000001/images/{VICTIM}"
VICTIM_ROW = 7  # third image number, second class


@pytest.fixture
def load(tmp_path):
    def load(split, root, **options):
        return data.load("tiny_imagenet", split, root=root, cache=tmp_path / "cache", **options)
    return load


def leftovers(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").glob("*")) + list((tmp_path / "cache").glob(".*"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [lambda encoded: encoded[:300], lambda encoded: b"no image", lambda encoded: b"",
                                    lambda encoded: b"GIF89a" + encoded])
def test_a_corrupt_image_is_skipped_by_name_or_refused(archive, tmp_path, load, kind, damage):
    whole = load("train", archive.write(kind, tmp_path / "whole"))
    archive.files[VICTIM_PATH] = damage(archive.files[VICTIM_PATH])
    root = archive.write(kind, tmp_path / "root")
    with pytest.warns(UserWarning, match=rf"1 images cannot be decoded and are left out: .*{VICTIM}"):
        train = load("train", root)
    rest = np.delete(np.arange(len(whole)), VICTIM_ROW)
    assert np.array_equal(train.images, whole.images[rest])
    assert np.array_equal(train.labels, whole.labels[rest])
    with pytest.warns(UserWarning, match=VICTIM):  # from the cache, too
        seed = load("train", root, splits="seed")
    assert len(seed) == 8
    with pytest.raises(InputError, match=rf"1 images cannot be decoded[\s\S]*{VICTIM}"):
        load("train", root, strict=True)


def test_a_member_with_a_wrong_checksum_counts_as_corrupt(archive, tmp_path, load):
    path = archive.write_zip(tmp_path / "images.zip")
    with zipfile.ZipFile(path) as file:
        start = file.getinfo(f"tiny-imagenet-200/{VICTIM_PATH}").header_offset
    raw = bytearray(path.read_bytes())
    raw[start + 200] ^= 0xFF
    path.write_bytes(raw)
    with pytest.warns(UserWarning, match=VICTIM):
        assert len(load("train", path)) == 14


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "found"), [((64, 48), "64x48"), ((128, 128), "128x128"), ((1, 1), "1x1")])
def test_an_image_of_another_size_is_refused_by_name(archive, tmp_path, load, kind, size, found):
    archive.files[VICTIM_PATH] = archive.jpeg(1, size=size)
    with pytest.raises(InputError, match=rf"wrong size[\s\S]*{VICTIM}[\s\S]*64x64 pixels[\s\S]*{found}"):
        load("train", archive.write(kind, tmp_path / "root"))
    assert leftovers(tmp_path) == []


def test_a_picture_that_claims_to_be_huge_is_refused_before_decoding(archive, tmp_path, load):
    png = archive.jpeg(1, format="PNG")
    for side in (10_000, 60_000):  # Pillow warns of the one and refuses the other
        header = png[12:16] + side.to_bytes(4, "big") * 2 + png[24:29]
        archive.files[VICTIM_PATH] = png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]
        root = archive.write_folder(tmp_path / str(side))
        with pytest.raises(InputError, match=rf"wrong size[\s\S]*{VICTIM}[\s\S]*decompression bomb"):
            load("train", root)


def test_nothing_decodable_at_all(archive, tmp_path, load):
    for name in archive.files:
        if name.startswith("val/images"):
            archive.files[name] = b"?"
    with pytest.raises(InputError, match="no image could be decoded"):
        load("val", archive.write_zip(tmp_path / "images.zip"))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("make", "message"), [
    (lambda folder: None, "tiny_imagenet needs to know where its images are"),
    (lambda folder: folder / "absent", r"does not exist[\s\S]*absent"),
    (lambda folder: folder, r"does not hold Tiny ImageNet[\s\S]*tiny-imagenet-200\.zip[\s\S]*an empty folder")])
def test_a_missing_folder(tmp_path, load, make, message):
    folder = tmp_path / "root"
    folder.mkdir()
    with pytest.raises(MissingFile, match=message):
        load("train", make(folder))


@pytest.mark.parametrize("keep", [0, 1000, -100])
def test_a_truncated_zip(archive, tmp_path, load, keep):
    path = archive.write_zip(tmp_path / "images.zip")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"not a whole zip archive[\s\S]*images\.zip[\s\S]*cut short"):
        load("train", path)


@pytest.mark.parametrize("keep", [0, 1000, -5])
def test_a_truncated_shard(archive, tmp_path, load, keep):
    root = archive.write_parquet(tmp_path / "root")
    shard = root / "train-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"not a whole parquet file[\s\S]*train-00001-of-00002"):
        load("train", root)


def test_a_missing_shard(archive, tmp_path, load):
    root = archive.write_parquet(tmp_path / "root")
    (root / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(MissingFile, match=r"shards are not complete[\s\S]*2 of train[\s\S]*train-00001"):
        load("train", root)
    (root / "val-00000-of-00001.parquet").unlink()
    with pytest.raises(MissingFile, match="no shards of this part"):
        load("val", root)


def test_a_shard_with_other_columns(archive, tmp_path, load):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root = archive.write_parquet(tmp_path / "root")
    parquet.write_table(pyarrow.table({"img": [b"x"], "label": [0]}), root / "val-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"columns are not those[\s\S]*image\.bytes[\s\S]*img, label"):
        load("val", root)


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_an_annotation_outside_the_classes(archive, tmp_path, load, kind):
    name = "val/val_annotations.txt"
    archive.files[name] = archive.files[name].replace(b"val_3.JPEG\tn01000001", b"val_3.JPEG\tn09999999")
    with pytest.raises(InputError, match=r"label is outside the classes[\s\S]*val_3\.JPEG[\s\S]*n09999999"):
        load("val", archive.write(kind, tmp_path / "root"))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_parquet_label_outside_the_classes(archive, tmp_path, load, label):
    root = archive.write_parquet(tmp_path / "root")
    archive.write_shard(root / "val-00000-of-00001.parquet", [("val_0.JPEG", 0, b""), ("val_1.JPEG", label, b"")])
    with pytest.raises(InputError, match=rf"outside the classes[\s\S]*val_1\.JPEG[\s\S]*0 to 2[\s\S]*found: {label}"):
        load("val", root)


@pytest.mark.parametrize("kind", ["zip", "folder"])
@pytest.mark.parametrize(("remove", "split", "message"), [
    ("val/images/val_2.JPEG", "val", r"annotated image is not there[\s\S]*val_2"),
    ("val/val_annotations.txt", "val", r"missing or damaged[\s\S]*val_annotations"),
    ("words.txt", "train", r"missing or damaged[\s\S]*words\.txt")])
def test_a_missing_file_is_named(archive, tmp_path, load, kind, remove, split, message):
    del archive.files[remove]
    with pytest.raises(MissingFile, match=message):
        load(split, archive.write(kind, tmp_path / "root"))


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_a_class_without_images(archive, tmp_path, load, kind):
    archive.files = {name: file for name, file in archive.files.items() if not name.startswith("train/n03000001")}
    with pytest.raises(MissingFile, match=r"class has no training images[\s\S]*n03000001"):
        load("train", archive.write(kind, tmp_path / "root"))


@pytest.mark.parametrize("content", [b"", b"n01000001\nn01000001\n", b"../../etc\n", b"n0100000\n"])
def test_a_damaged_list_of_classes(archive, tmp_path, load, content):
    archive.files["wnids.txt"] = content
    with pytest.raises(InputError, match=r"list of classes is damaged[\s\S]*wnids\.txt"):
        load("train", archive.write_zip(tmp_path / "images.zip"))


@pytest.mark.parametrize(("content", "message"), [
    ("{}", "damaged"), ("[]", "damaged"), ('[{"label": 0}]', "damaged"), ("[", "not valid JSON"),
    ('[{"label": 1, "wnid": "n01000001", "name": "a"}]', "do not sort by wnid"),
    ('[{"label": 0, "wnid": "n2", "name": "a"}, {"label": 1, "wnid": "n1", "name": "b"}]', "do not sort by wnid")])
def test_a_damaged_classes_json(archive, tmp_path, load, content, message):
    root = archive.write_parquet(tmp_path / "root")
    (root / "classes.json").write_text(content)
    with pytest.raises(InputError, match=rf"{message}[\s\S]*classes\.json"):
        load("train", root)


def test_a_zip_of_something_else(tmp_path, load):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(MissingFile, match=r"does not hold Tiny ImageNet[\s\S]*images\.zip"):
        load("train", tmp_path / "images.zip")


@pytest.mark.parametrize(("limit", "value", "message"), [
    ("MAX_MEMBERS", 10, "too many members"), ("MAX_TOTAL_BYTES", 1000, "unpack to too much"),
    ("MAX_FILE_BYTES", 100, r"member is too large[\s\S]*tiny-imagenet-200/")])
def test_limits_of_a_zip_are_checked_before_reading(archive, tmp_path, load, monkeypatch, limit, value, message):
    path = archive.write_zip(tmp_path / "images.zip")
    monkeypatch.setattr(archives, limit, value)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(InputError, match=message):
        load("train", path)


def test_a_zip_bomb(archive, tmp_path, load):
    archive.files[VICTIM_PATH] = bytes(2**20)
    with pytest.raises(InputError, match=rf"packed suspiciously well[\s\S]*{VICTIM}[\s\S]*at most 200 times"):
        load("train", archive.write_zip(tmp_path / "images.zip"))


def test_a_member_that_occurs_twice(archive, tmp_path, load):
    path = archive.write_zip(tmp_path / "images.zip")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("tiny-imagenet-200/wnids.txt", "n01000001\n")
    with pytest.raises(InputError, match=r"occurs more than once[\s\S]*wnids\.txt[\s\S]*2 times"):
        load("train", path)


def test_an_encrypted_member(archive, tmp_path, load):
    path = archive.write_zip(tmp_path / "images.zip")
    raw = bytearray(path.read_bytes())
    raw[[match.start() for match in re.finditer(b"PK\x01\x02", raw)][-1] + 8] |= 1  # flags in the central directory
    path.write_bytes(raw)
    with pytest.raises(InputError, match="member is encrypted"):
        load("train", path)


def test_a_full_disk_leaves_nothing_behind_and_the_old_entry_intact(archive, tmp_path, load, monkeypatch):
    load("val", archive.write_zip(tmp_path / "images.zip"))
    before = leftovers(tmp_path)

    def full(descriptor, offset, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"cannot be written[\s\S]*cache[\s\S]*No space left[\s\S]*make room"):
        load("train", tmp_path / "images.zip")
    assert leftovers(tmp_path) == before
    decoded.verify(before[0])


@pytest.mark.parametrize(("options", "message"), [
    ({"num_classes": 4}, r"num_classes[\s\S]*1 to 3[\s\S]*4"), ({"num_classes": 0}, "1 to 3"),
    ({"splits": "seeds"}, "did you mean 'seed'")])
def test_options_out_of_range(archive, tmp_path, load, options, message):
    with pytest.raises(InputError, match=message):
        load("train", archive.write_zip(tmp_path / "images.zip"), **options)
