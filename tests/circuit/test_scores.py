"""Scores: the choices that follow from them, and their file."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
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


def grown_by_search(scores: EdgeScores, n: int) -> set[str]:
    """The n edges of ``greedy`` as the words say it: by names alone, looking at every edge again for every step."""
    readers_of = {}  # which readers come in with a sender: those of its own name, or that its part shares
    for sender in scores.graph.senders:
        shared = sender.split(".")[0]
        readers_of[sender] = {r for r in scores.graph.readers if r.split("<")[0] in (sender, shared)}
    inside, kept = {"logits"}, []
    for _ in range(n):
        open_edges = [(-abs(score), index) for index, score in enumerate(scores.values)
                      if scores.graph.edge_name(index).split("->")[1] in inside and index not in kept]
        kept.append(min(open_edges)[1])
        inside |= readers_of[scores.graph.edge_name(kept[-1]).split("->")[0]]
    return {scores.graph.edge_name(index) for index in kept}


@settings(max_examples=30)
@given(data=st.data(), granularity=st.sampled_from(("qkv", "head", "layer", "block")), groups=st.integers(1, 2))
def test_greedy_grows_back_from_the_logits(data, granularity, groups):
    graph = Graph(2, 2, granularity, groups)
    values = data.draw(arrays(np.float64, graph.num_edges, elements=st.integers(-4, 4)))
    n = data.draw(st.integers(0, graph.num_edges))
    circuit = EdgeScores(graph, values).greedy(n)
    assert circuit.num_kept == n
    assert set(circuit.kept) == grown_by_search(EdgeScores(graph, values), n)


def test_greedy_takes_a_weak_edge_that_leads_somewhere_before_a_strong_one_that_does_not():
    scores = EdgeScores(GRAPH, [9, -8, 7, 1, 0, -3])  # input->a0, input->m0, a0->m0, then input, a0, m0->logits
    assert scores.top_k(3).kept == ("input->a0", "input->m0", "a0->m0")
    assert scores.greedy(1).kept == ("m0->logits",)
    assert scores.greedy(3).kept == ("input->m0", "a0->m0", "m0->logits")
    assert scores.greedy(4).kept == ("input->a0", "input->m0", "a0->m0", "m0->logits")
    assert scores.greedy(1, by="signed").kept == ("input->logits",)
    assert scores.greedy(6).num_kept == 6
    assert scores.greedy(2).provenance["selection"] == "greedy"


def test_an_operator_graph_does_not_grow():
    graph = Graph(1, 1, "operator")
    with pytest.raises(InputError, match="cannot be done with an operator graph"):
        EdgeScores(graph, np.zeros(graph.num_edges)).greedy(3)


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
    with pytest.raises(InputError, match=r"greedy\(n\)[\s\S]*0 \.\. 6"):
        scores.greedy(n)
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


@pytest.mark.parametrize("value", [np.int64(3), np.zeros(2), float("nan"), {"deep": [1, {2}]}, {1: np.ones(1)}, b"x"])
def test_provenance_that_no_file_can_hold_is_refused_at_once(value):
    with pytest.raises(InputError, match=r"EdgeScores\.provenance\['images'\][\s\S]*int\(x\)"):
        EdgeScores(GRAPH, range(6), {"method": "eap", "images": value})


def test_provenance_is_what_its_file_will_give_back(tmp_path):
    steps = [1, 2]
    scores = EdgeScores(GRAPH, range(6), {"steps": steps, "size": (2, 3), "score": np.float64(0.5)})
    steps.append(3)
    assert dict(scores.provenance) == {"steps": [1, 2], "size": [2, 3], "score": 0.5}
    scores.save(tmp_path / "scores.safetensors")
    assert EdgeScores.load(tmp_path / "scores.safetensors").provenance == scores.provenance


@pytest.mark.parametrize(("t", "kept"), [(float("inf"), 0), (float("-inf"), 6)])
def test_an_infinite_threshold_keeps_all_or_nothing(tmp_path, t, kept):
    circuit = EdgeScores(GRAPH, range(6)).threshold(t)
    assert circuit.num_kept == kept
    circuit.save(tmp_path / "circuit.json")


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
