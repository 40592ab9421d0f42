"""Scores: the choices that follow from them, and their file."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.strategies import graphs
from vitsparse.circuit import EdgeScores, Graph
from vitsparse.circuit.files import read_tensors, write_tensors
from vitsparse.errors import InputError, MissingFile

GRAPH = Graph(1, 2, "block")  # 6 edges


def test_top_k_takes_the_largest_and_ties_in_canonical_order():
    scores = EdgeScores(GRAPH, [1, -3, 3, -1, 1, 0])
    assert scores.top_k(0).num_kept == 0
    assert scores.top_k(1).keep.tolist() == [False, True, False, False, False, False]
    assert scores.top_k(4).keep.tolist() == [True, True, True, True, False, False]
    assert scores.top_k(6).num_kept == 6
    assert scores.top_k(2, by="signed").keep.tolist() == [True, False, True, False, False, False]


def test_threshold_is_inclusive():
    scores = EdgeScores(GRAPH, [1, -3, 3, -1, 1, 0])
    assert scores.threshold(1).keep.tolist() == [True, True, True, True, True, False]
    assert scores.threshold(1, by="signed").keep.tolist() == [True, False, True, False, True, False]
    assert scores.threshold(-1, by="signed").keep.tolist() == [True, False, True, True, True, True]
    assert scores.threshold(0).num_kept == 6


@given(graph=graphs(), data=st.data())
def test_top_k_keeps_exactly_n_and_none_better_is_left_out(graph, data):
    values = data.draw(arrays(np.float64, graph.num_edges, elements=st.integers(-3, 3)))
    n = data.draw(st.integers(0, graph.num_edges))
    keep = EdgeScores(graph, values).top_k(n).keep
    assert keep.sum() == n
    if 0 < n < graph.num_edges:
        assert np.abs(values[keep]).min() >= np.abs(values[~keep]).max()


def test_a_choice_carries_where_it_comes_from():
    ablation = {"kind": "zero", "sha256": None}
    scores = EdgeScores(GRAPH, range(6), {"method": "eap", "ablation": ablation})
    circuit = scores.top_k(2)
    assert dict(circuit.ablation) == ablation
    assert circuit.provenance["method"] == "eap"
    assert (circuit.provenance["selection"], circuit.provenance["n"]) == ("top_k", 2)
    assert scores.threshold(2.0).provenance["t"] == 2.0


@pytest.mark.parametrize("n", [-1, 7, 2.5, "3"])
def test_impossible_choices_are_refused(n):
    scores = EdgeScores(GRAPH, range(6))
    with pytest.raises(InputError, match=r"0 \.\. 6"):
        scores.top_k(n)
    with pytest.raises(InputError, match="'magnitude' or 'signed'"):
        scores.top_k(2, by="size")
    with pytest.raises(InputError, match=r"threshold\(t\)"):
        scores.threshold(float("nan"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_must_be_finite(bad):
    with pytest.raises(InputError, match=rf"edge a0->m0\n.*\n.*found: {bad} \(1 such"):
        EdgeScores(GRAPH, [0, 0, bad, 0, 0, 0])


@pytest.mark.parametrize("values", [[1.0] * 5, [[1.0] * 6], ["a"] * 6, [1j] * 6])
def test_what_is_no_score_per_edge_is_refused(values):
    with pytest.raises(InputError, match=r"EdgeScores\.values"):
        EdgeScores(GRAPH, values)


def test_scores_are_read_only():
    values = np.arange(6.0)
    scores = EdgeScores(GRAPH, values)
    values[:] = 0
    assert scores.values[5] == 5
    with pytest.raises(ValueError, match="read-only"):
        scores.values[0] = 1


def test_files_round_trip(tmp_path):
    scores = EdgeScores(GRAPH, np.random.default_rng(0).normal(size=6), {"method": "eap", "images": 3})
    scores.save(tmp_path / "scores.safetensors")
    loaded = EdgeScores.load(tmp_path / "scores.safetensors")
    assert loaded.graph == GRAPH
    assert np.array_equal(loaded.values, scores.values)
    assert loaded.provenance == scores.provenance
    assert "eap" in repr(loaded)


def rewritten(tensors=None, **metadata):
    def apply(path) -> None:
        old_tensors, old_metadata = read_tensors(path)
        write_tensors(path, tensors if tensors is not None else old_tensors, old_metadata | metadata)
    return apply


def truncated(path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(("damaged", "message"), [
    (truncated, "not a readable safetensors"),
    (lambda path: path.write_bytes(b""), "not a readable safetensors"),
    (lambda path: path.write_bytes(b"\x80\x04pickle"), "not a readable safetensors"),
    (rewritten(format="vitsparse.ablation"), "edge scores of this version"),
    (rewritten(version="2"), "edge scores of this version"),
    (rewritten({"values": np.zeros(6)}), "one floating-point tensor"),
    (rewritten({"scores": np.zeros(6, dtype=np.int64)}), "one floating-point tensor"),
    (rewritten({"scores": np.zeros(5)}), "one value per edge"),
    (rewritten({"scores": np.array([0, 0, 0, 0, 0, np.nan])}), r"finite numbers"),
    (rewritten(graph="{"), "metadata is damaged"),
    (rewritten(graph=json.dumps({"depth": 1})), "four fields"),
    (rewritten(provenance="nothing"), "metadata is damaged"),
    (rewritten(provenance="[1]"), "metadata is damaged"),
])
def test_damaged_files_name_the_file(tmp_path, damaged, message):
    path = tmp_path / "my.safetensors"
    EdgeScores(GRAPH, range(6)).save(path)
    damaged(path)
    with pytest.raises(InputError, match=message) as raised:
        EdgeScores.load(path)
    raised.match(r"my\.safetensors")


def test_missing_file(tmp_path):
    with pytest.raises(MissingFile, match="absent"):
        EdgeScores.load(tmp_path / "absent.safetensors")


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "scores.safetensors"
    EdgeScores(GRAPH, range(6)).save(path)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        EdgeScores(GRAPH, [1] * 6).save(path)
    monkeypatch.undo()
    assert EdgeScores.load(path).values.tolist() == [0, 1, 2, 3, 4, 5]
    assert os.listdir(tmp_path) == ["scores.safetensors"]
