"""Files: atomic writes, and reads that believe nothing."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest

from vitsparse.circuit import files
from vitsparse.errors import InputError, MissingFile


def test_json_refuses_what_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "x.json", {"score": float("nan")})
    assert os.listdir(tmp_path) == []


def test_json_round_trip_in_a_new_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "x.json"
    files.write_json(path, {"a": [1, None, "ä"]})
    assert files.read_json(path) == {"a": [1, None, "ä"]}
    assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(("text", "message"), [
    ('[{"a": 1, "b": 2, "a": 1}]', "'a' is given twice"), ("[-Infinity]", "-Infinity is not JSON"),
    ('{"x": NaN}', "NaN is not JSON"), ("1" * 5000, "not valid JSON"), ("[" * 100_000, "not valid JSON"),
])
def test_what_a_lenient_parser_lets_through_is_refused(tmp_path, text, message):
    files.write_text(tmp_path / "x.json", text)
    with pytest.raises(InputError, match=message):
        files.read_json(tmp_path / "x.json")


def test_an_absurdly_large_file_is_not_read(tmp_path):
    files.write_text(tmp_path / "x.json", "[" + "0," * 100 + "0]")
    with pytest.raises(InputError, match=r"x\.json\n  expected: at most 100 bytes"):
        files.read_json(tmp_path / "x.json", max_bytes=100)


def test_permissions_follow_the_umask(tmp_path):
    """A temporary file is private; what it becomes is as readable as any other file."""
    old = os.umask(0o022)
    try:
        files.write_text(tmp_path / "x", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def write_half() -> None:
        with files.atomic_path(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    files.write_text(tmp_path / "x", "old")
    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_tensors_round_trip(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T  # not contiguous
    files.write_tensors(tmp_path / "x.safetensors", {"a": array}, {"kind": "test"})
    tensors, metadata = files.read_tensors(tmp_path / "x.safetensors")
    assert np.array_equal(tensors["a"], array)
    assert metadata == {"kind": "test"}


def test_sha256_and_missing_files(tmp_path):
    files.write_bytes(tmp_path / "x", b"abc")
    assert files.sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for read in (files.sha256_of, files.read_json, files.read_tensors):
        with pytest.raises(MissingFile, match="absent"):
            read(tmp_path / "absent")
        with pytest.raises(InputError, match="a file is needed, not a folder"):
            read(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.existing(tmp_path / "absent")
    files.write_text(tmp_path / "dense" / "config.json", "{}")
    with pytest.raises(MissingFile, match=r"remedy: check the path; there is .*dense/config\.json$"):
        files.existing(tmp_path / "config.json")
