"""Tiny ImageNet as parquet shards in the layout of the Hugging Face hub: ``image: {bytes, path}``, ``label``."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError, MissingFile
from .archives import MAX_FILE_BYTES, MAX_MEMBERS, MAX_TOTAL_BYTES, Item, Stamp, file_stamp, image_number, read_classes

SHARD_NAME = re.compile(r"(train|val)-\d+-of-(\d+)\.parquet")
ROWS_AT_ONCE = 1024


class ParquetShards:
    """``train-*.parquet``, ``val-*.parquet`` and ``classes.json`` in one folder."""

    kind = "parquet"

    def __init__(self, path: Path):
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise InputError("parquet shards need pyarrow, which is not installed", where=path,
                             remedy="pip install 'vitsparse[tiny-imagenet]'") from error
        self.path = path
        self.classes = read_classes(path / "classes.json")

    def items(self, part: str, num_classes: int) -> list[Item]:
        """A row whose ``path`` is empty gets its number from the order: the number of earlier rows of its class."""
        found, seen, row = [], Counter(), 0
        for shard in self._shards(part):
            names, labels = self._names_and_labels(shard)
            for name, label in zip(names, labels, strict=True):
                if label is None or not 0 <= label < len(self.classes):
                    raise InputError("a label is outside the classes", where=f"{shard}, {name or f'row {row}'}",
                                     expected=f"0 to {len(self.classes) - 1}", found=label)
                number = seen[label] if name is None else image_number(name)
                if number is None:
                    raise InputError("an image has a strange name", where=f"{shard}, row {row}",
                                     expected="n01443537_123.JPEG or val_123.JPEG", found=name)
                if label < num_classes:
                    found.append(Item(name or f"{shard.name}, row {row}", label, number, row))
                seen[label] += 1
                row += 1
        return found

    def read(self, part: str, items: Sequence[Item]) -> Iterator[tuple[int, bytes]]:
        position_of = {item.row: position for position, item in enumerate(items)}
        row = 0
        for shard in self._shards(part):
            with _readable(shard):
                for batch in self._open(shard).iter_batches(ROWS_AT_ONCE, columns=["image.bytes"]):
                    encoded = batch.column("image").field("bytes")
                    for offset in range(len(encoded)):
                        if (position := position_of.get(row + offset)) is not None:
                            yield position, _capped(encoded[offset].as_py())
                    row += len(encoded)

    def stamps(self, part: str, items: Sequence[Item]) -> list[Stamp]:
        return [file_stamp(path, path.name) for path in (self.path / "classes.json", *self._shards(part))]

    def _shards(self, part: str) -> list[Path]:
        shards = sorted(path for path in self.path.glob(f"{part}-*") if SHARD_NAME.fullmatch(path.name))
        if not shards:
            raise MissingFile("the folder has no shards of this part", where=self.path,
                              expected=f"{part}-00000-of-0000N.parquet")
        promised = {int(SHARD_NAME.fullmatch(path.name)[2]) for path in shards}
        if promised != {len(shards)}:
            raise MissingFile("the shards are not complete", where=self.path, expected=f"{max(promised)} of {part}",
                              found=", ".join(path.name for path in shards))
        return shards

    def _open(self, shard: Path):
        import pyarrow.parquet

        with _readable(shard):
            file = pyarrow.parquet.ParquetFile(shard)
        columns = {file.schema.column(i).path for i in range(len(file.schema))}
        if not {"image.bytes", "image.path", "label"} <= columns:
            raise InputError("the columns are not those of an image data set", where=shard,
                             expected="image.bytes, image.path, label", found=", ".join(sorted(columns)))
        size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        if file.metadata.num_rows > MAX_MEMBERS or size > MAX_TOTAL_BYTES:
            raise InputError("the file is too large to be what it claims", where=shard,
                             expected=f"at most {MAX_MEMBERS} rows and {MAX_TOTAL_BYTES} bytes",
                             found=f"{file.metadata.num_rows} rows and {size} bytes")
        return file

    def _names_and_labels(self, shard: Path) -> tuple[list[str | None], list[int | None]]:
        import pyarrow

        with _readable(shard):
            table = self._open(shard).read(columns=["image.path", "label"])
        if not pyarrow.types.is_integer(table.schema.field("label").type):
            raise InputError("the labels are not whole numbers", where=shard, found=table.schema.field("label").type)
        names = [image["path"] if image else None for image in table.column("image").to_pylist()]
        return names, table.column("label").to_pylist()


@contextlib.contextmanager
def _readable(shard: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("the file is not a whole parquet file", where=shard, found=error,
                         remedy="its download may have been cut short: fetch it again") from error


def _capped(encoded: bytes | None) -> bytes:
    return encoded if encoded is not None and len(encoded) <= MAX_FILE_BYTES else b""
