"""The memory of the fastest tiles, with a clock and a device made up."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from vitsparse.backends import triton

if "triton is not installed" in triton.why_not():
    pytest.skip("triton is not installed", allow_module_level=True)

from triton.runtime.errors import OutOfResources

from vitsparse._triton import tune

SLOW, FAST, OTHER = tune.tiles(BLOCK_M=16), tune.tiles(BLOCK_M=32), tune.tiles(BLOCK_M=64)
X = SimpleNamespace(is_cuda=True, device="cuda:0", dtype=torch.float16)


class Device:
    """A GPU that takes ``BLOCK_M`` of the slowest and 1 of FAST; counts what it is asked to run."""

    def __init__(self):
        self.name, self.capturing, self.too_large, self.runs = "A card", False, [], []

    def launch(self, tiles: tune.Tiles) -> None:
        if tiles in self.too_large:
            raise OutOfResources(200_000, 100_000, "shared memory")
        self.runs.append(tiles)

    def choose(self, candidates=(SLOW, FAST, OTHER), shape=(64, 256), op="linear", x=X) -> tune.Tiles:
        return tune.choose(op, x, shape, candidates, self.launch)


@pytest.fixture
def device(monkeypatch, tmp_path) -> Device:
    device = Device()

    def milliseconds(run) -> float:
        run()
        return 1.0 if device.runs[-1] == FAST else float(device.runs[-1]["BLOCK_M"])

    monkeypatch.setenv("VITSPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(tune, "_milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: device.name)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: device.capturing)
    forget(monkeypatch)
    return device


def forget(monkeypatch) -> None:
    """As a new process begins."""
    monkeypatch.setattr(tune, "_chosen", {})
    monkeypatch.setattr(tune, "_files", {})


def test_the_fastest_is_measured_once_and_kept_for_the_next_process(device, monkeypatch):
    assert device.choose() == FAST
    assert device.runs == [SLOW, FAST, OTHER]
    assert device.choose() == FAST
    forget(monkeypatch)
    assert device.choose() == FAST
    assert len(device.runs) == 3


@pytest.mark.parametrize("change", [
    {"shape": (64, 512)}, {"op": "mlp"}, {"x": SimpleNamespace(is_cuda=True, device="cuda:0", dtype=torch.bfloat16)}],
    ids=str)
def test_other_work_is_measured_anew(device, change):
    device.choose()
    device.choose(**change)
    assert len(device.runs) == 6


def test_another_device_or_other_kernels_are_measured_anew(device, monkeypatch):
    device.choose()
    forget(monkeypatch)
    device.name = "Another card"
    device.choose()
    assert len(device.runs) == 6
    forget(monkeypatch)
    monkeypatch.setattr(tune, "_sources", lambda: "other kernels")
    device.choose()
    assert len(device.runs) == 9


def test_tiles_that_are_no_candidates_any_more_are_not_used(device, monkeypatch):
    device.choose()
    forget(monkeypatch)
    assert device.choose((SLOW, OTHER)) == SLOW


def test_nothing_is_measured_during_a_capture_nor_remembered(device):
    device.capturing = True
    assert device.choose() == SLOW
    assert device.runs == []
    device.capturing = False
    assert device.choose() == FAST
    device.capturing = True
    assert device.choose() == FAST


def test_a_capture_uses_what_the_file_knows(device, monkeypatch):
    device.choose()
    forget(monkeypatch)
    device.capturing = True
    assert device.choose() == FAST


def test_without_a_gpu_the_first_candidate_serves(device):
    assert device.choose(x=torch.zeros(1)) == SLOW
    assert device.choose((OTHER,)) == OTHER
    assert device.runs == []


def test_what_the_device_has_no_room_for_is_passed_over(device):
    device.too_large = [FAST, SLOW]
    assert device.choose() == OTHER
    device.too_large.append(OTHER)
    with pytest.raises(RuntimeError, match="none of the 3 tilings of the Triton kernel of linear fits"):
        device.choose(shape=(1, 1))


@pytest.mark.parametrize("content", [
    "", "{", "[]", "\x00", '{"format": "something else"}', '{"format": 1, "fastest": 2}',
    '{"format": "vitsparse.triton-tune", "fastest": []}'], ids=repr)
def test_a_damaged_file_is_replaced_with_a_warning(device, monkeypatch, caplog, content):
    tune.path().parent.mkdir()
    tune.path().write_text(content)
    with caplog.at_level(logging.WARNING, "vitsparse"):
        assert device.choose() == FAST
    assert "measured anew" in caplog.text
    forget(monkeypatch)
    assert device.choose() == FAST
    assert len(device.runs) == 3
    assert json.loads(tune.path().read_text())["version"] == 1


def test_an_entry_that_is_nonsense_is_measured_anew(device, monkeypatch):
    device.choose()
    text = json.loads(tune.path().read_text())
    for nonsense in ("fast", [1], {"BLOCK_M": "32"}, {"BLOCK_M": 48}, None):
        text["fastest"] = dict.fromkeys(text["fastest"], nonsense)
        tune.path().write_text(json.dumps(text))
        forget(monkeypatch)
        assert device.choose() == FAST
    assert len(device.runs) == 18


def test_a_place_that_cannot_be_written_is_no_failure(device, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("VITSPARSE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "vitsparse"):
        assert device.choose() == FAST
    assert "not kept" in caplog.text
    assert device.choose() == FAST
    assert len(device.runs) == 3


def test_where_the_file_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("VITSPARSE_CACHE", "/somewhere")
    assert str(tune.path()) == "/somewhere/triton-tune.json"
    monkeypatch.delenv("VITSPARSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(tune.path()) == "/cache/vitsparse/triton-tune.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tune.path() == tmp_path / ".cache/vitsparse/triton-tune.json"


def test_those_who_measure_at_once_lose_nothing(tmp_path):
    """Threads here, processes in life: the lock belongs to an open file, so it keeps both apart."""
    file = tmp_path / "triton-tune.json"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: tune.add(file, {str(i): FAST}), range(60)))
    assert tune.read(file).keys() == {str(i) for i in range(60)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["triton-tune.json", "triton-tune.lock"]


@pytest.mark.parametrize(("size", "rounded"), [(1, 16), (16, 16), (17, 24), (24, 24), (25, 32), (65, 96), (256, 256),
                                               (257, 384), (385, 512), (8320, 12288)])
def test_neighbouring_sizes_share_a_measurement(size, rounded):
    assert tune.near(size) == rounded
