"""Small archives of Tiny ImageNet, made on the fly: three classes, five training images each, six validation images."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from vitsparse.data import ImageSet

WNIDS = ("n02000001", "n01000001", "n03000001")  # as in the official list: not sorted
NUMBERS = (0, 1, 419, 420, 499)
VAL_LABELS = ("n03000001", "n01000001", "n02000001", "n01000001", "n03000001", "n02000001")
GREY = "n01000001_1.JPEG"


def jpeg(seed: int, *, size: tuple[int, int] = (64, 64), mode: str = "RGB", format: str = "JPEG") -> bytes:
    """A smooth random picture: random pixels would not survive JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR).convert(mode).save(buffer, format)
    return buffer.getvalue()


def write_shard(path: Path, rows: list[tuple[str, int, bytes]], *, named: bool = True) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": data, "path": name if named else None} for name, _, data in rows]
    struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    parquet.write_table(pyarrow.table({"image": pyarrow.array(images, struct),
                                       "label": pyarrow.array([label for _, label, _ in rows], pyarrow.int64())}), path)


@dataclass
class Archive:
    """The files of the official layout by name, to be changed by a test and written in one of three forms."""

    files: dict[str, bytes]
    classes: ClassVar[list[str]] = sorted(WNIDS)
    numbers: ClassVar[tuple[int, ...]] = NUMBERS
    val_labels: ClassVar[list[int]] = [sorted(WNIDS).index(wnid) for wnid in VAL_LABELS]
    grey: ClassVar[str] = f"train/n01000001/images/{GREY}"
    jpeg = staticmethod(jpeg)
    write_shard = staticmethod(write_shard)

    def write(self, kind: str, folder: Path) -> Path:
        """As "zip", "folder" or "parquet" under ``folder``; gives what ``load`` takes as root."""
        folder.mkdir(exist_ok=True)
        if kind == "zip":
            return self.write_zip(folder / "tiny-imagenet-200.zip")
        return self.write_folder(folder) if kind == "folder" else self.write_parquet(folder)

    def write_folder(self, folder: Path) -> Path:
        for name, data in self.files.items():
            path = folder / "tiny-imagenet-200" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder

    def write_zip(self, path: Path) -> Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in self.files.items():
                archive.writestr(f"tiny-imagenet-200/{name}", data)
        return path

    def write_parquet(self, folder: Path, *, named: bool = True) -> Path:
        """Ordered by image number, then label; ``named=False`` leaves the paths empty."""
        folder.mkdir(exist_ok=True)
        order = sorted(WNIDS)
        train = [(f"{wnid}_{number}.JPEG", label, self.files[f"train/{wnid}/images/{wnid}_{number}.JPEG"])
                 for number in NUMBERS for label, wnid in enumerate(order)]
        val = [(f"val_{i}.JPEG", order.index(wnid), self.files[f"val/images/val_{i}.JPEG"])
               for i, wnid in enumerate(VAL_LABELS)]
        write_shard(folder / "train-00000-of-00002.parquet", train[:7], named=named)
        write_shard(folder / "train-00001-of-00002.parquet", train[7:], named=named)
        write_shard(folder / "val-00000-of-00001.parquet", val, named=named)
        classes = [{"label": i, "wnid": wnid, "name": f"name of {wnid}"} for i, wnid in enumerate(order)]
        (folder / "classes.json").write_text(json.dumps(classes))
        return folder


@pytest.fixture
def archive() -> Archive:
    files = {"wnids.txt": "\n".join(WNIDS).encode() + b"\n",
             "words.txt": "".join(f"{wnid}\tname of {wnid}\n" for wnid in (*WNIDS, "n09999999")).encode(),
             "val/val_annotations.txt": "".join(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n"
                                                for i, wnid in enumerate(VAL_LABELS)).encode(),
             "test/images/test_0.JPEG": jpeg(999)}
    for c, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"no image\n"
        for number in NUMBERS:
            name = f"{wnid}_{number}.JPEG"
            files[f"train/{wnid}/images/{name}"] = jpeg(1000 * c + number, mode="L" if name == GREY else "RGB")
    files |= {f"val/images/val_{i}.JPEG": jpeg(5000 + i) for i in range(len(VAL_LABELS))}
    return Archive(files)


@pytest.fixture(scope="session")
def pictures() -> ImageSet:
    """50 small colour images with structure, in five classes."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    return ImageSet(images, np.arange(50, dtype=np.int64) % 5, tuple("abcde"), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25),
                    "pictures", "train")


@pytest.fixture(scope="session")
def v2():
    """torchvision.transforms.v2, the truth for every augmentation."""
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # RuntimeError: a build for another torch
        pytest.skip(f"torchvision cannot be imported: {error}")
    return v2
