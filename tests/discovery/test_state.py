"""The state of a search comes back bit by bit; one that does not fit is refused and left alone."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from vitsparse.circuit.files import read_tensors, write_tensors
from vitsparse.discovery import state as state_module
from vitsparse.discovery.state import State
from vitsparse.errors import InputError

SEARCH = {"method": "edge_pruning", "lr": 0.1, "graph": {"depth": 2}}
ARRAYS = {"step": np.array(7), "masks": np.array([0.1, np.nan, -np.inf], dtype=np.float64),
          "kept": np.array([[True, False]])}


def test_arrays_come_back_bit_by_bit(tmp_path):
    path = tmp_path / "new folder" / "state"
    state = State(path, SEARCH)
    assert state.arrays is None
    state.save({"step": np.array(3)})
    state.save(ARRAYS)
    back = State(path, SEARCH).arrays
    assert set(back) == set(ARRAYS)
    assert all(back[name].tobytes() == array.tobytes() and back[name].dtype == array.dtype
               and back[name].shape == array.shape for name, array in ARRAYS.items())
    assert os.listdir(path.parent) == ["state"]


def test_without_a_path_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(state_module, "SAVE_SECONDS", 0.0)
    state = State(None, SEARCH)
    state.save(ARRAYS)
    assert state.arrays is None
    assert not state.due
    assert os.listdir(tmp_path) == []


def test_a_save_is_due_some_time_after_the_last(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(state_module.time, "monotonic", lambda: now[0])
    state = State(tmp_path / "state", SEARCH)
    assert not state.due
    now[0] += state_module.SAVE_SECONDS
    assert state.due
    state.save(ARRAYS)
    assert not state.due


@pytest.mark.parametrize(("search", "field"), [
    ({**SEARCH, "lr": 0.2}, "lr"), ({**SEARCH, "graph": {"depth": 3}}, "graph"), ({**SEARCH, "seed": 0}, "seed"),
    ({"method": "edge_pruning", "lr": 0.1}, "graph"),
])
def test_the_state_of_another_search_is_refused(tmp_path, search, field):
    path = tmp_path / "state"
    State(path, SEARCH).save(ARRAYS)
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"another search\n  where: .*state: {field}\n"):
        State(path, search)
    assert path.read_bytes() == before


def flip_the_last_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rewrite(**changes):
    def apply(path) -> None:
        arrays, metadata = read_tensors(path)
        write_tensors(path, arrays, {**metadata, **changes})
    return apply


@pytest.mark.parametrize(("damage", "message"), [
    (lambda path: path.write_bytes(b""), "not a readable safetensors"),
    (lambda path: path.write_text("my notes\n"), "not a readable safetensors"),
    (lambda path: path.write_bytes(path.read_bytes()[:-3]), "not a readable safetensors"),
    (flip_the_last_bit, "damaged"),
    (rewrite(format="vitsparse.ablation"), "not the state of a search"),
    (rewrite(version="2"), "version 2"),
    (rewrite(search="[1"), "state: search"),
    (rewrite(search="7"), "state: search"),
])
def test_a_file_that_is_no_state_is_refused_and_kept(tmp_path, damage, message):
    path = tmp_path / "state"
    State(path, SEARCH).save(ARRAYS)
    damage(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=message) as raised:
        State(path, SEARCH)
    raised.match(str(path))
    assert path.read_bytes() == before


def test_a_folder_is_no_state(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        State(tmp_path, SEARCH)


def test_a_full_disk_keeps_the_state_before(tmp_path, monkeypatch):
    path = tmp_path / "state"
    state = State(path, SEARCH)
    state.save({"step": np.array(1)})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        state.save({"step": np.array(2)})
    monkeypatch.undo()
    assert State(path, SEARCH).arrays["step"] == 1
