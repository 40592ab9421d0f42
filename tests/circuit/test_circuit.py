"""Circuits as values: algebra, pruning, what is dead or constant, and their file."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import circuits, graphs, make_circuit
from vitsparse.circuit import Circuit, Graph
from vitsparse.errors import InputError, MissingFile

GRAPH = Graph(2, 2)


@st.composite
def pairs(draw) -> tuple[Circuit, Circuit]:
    graph = draw(graphs())
    return draw(circuits(graph)), draw(circuits(graph))


def driven_by(circuit: Circuit) -> dict[str, set[str]]:
    """For each node, the nodes that its kept edges come from; by names alone, q, k, v and groups belonging together."""
    arrows: dict[str, set[str]] = {}
    for name in circuit.kept:
        sender, reader = name.split("->")
        arrows.setdefault(reader.split("<")[0], set()).add(sender)
    for sender in circuit.graph.senders:  # what a shared reader (a0, m0) reads, its heads or groups depend on
        shared = sender.split(".")[0]
        if sender != shared:
            arrows.setdefault(sender, set()).update(arrows.get(shared, set()))
    return arrows


def reaches(circuit: Circuit, start: str, goal: str) -> bool:
    """Whether a path of kept edges leads from one node to another, by depth-first search backward."""
    arrows, todo, seen = driven_by(circuit), [goal], set()
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += arrows.get(node, ())
    return start in seen


@settings(max_examples=40)
@given(data=st.data(), graph=graphs())
def test_dead_constant_and_pruned_by_search_over_names(data, graph):
    circuit = data.draw(circuits(graph))
    reach_out = {name for name in graph.senders if reaches(circuit, name, "logits")}
    reached = {name for name in graph.senders if reaches(circuit, "input", name)}
    assert set(circuit.dead) == set(graph.senders) - reach_out
    assert set(circuit.constant) == reach_out - reached
    live = reach_out & reached
    live_readers = {"logits"} | live | {name.split(".")[0] for name in live}
    expected = [name for name in circuit.kept
                if name.split("->")[0] in live and name.split("->")[1].split("<")[0] in live_readers]
    pruned = circuit.prune()
    assert list(pruned.kept) == expected
    assert pruned.prune() == pruned
    assert pruned.provenance["pruned"]
    assert not pruned.constant


@given(pair=pairs())
def test_set_algebra(pair):
    a, b = pair
    assert set((a & b).kept) == set(a.kept) & set(b.kept)
    assert set((a | b).kept) == set(a.kept) | set(b.kept)
    assert set((a - b).kept) == set(a.kept) - set(b.kept)
    assert set((~a).kept) == set(a.graph.edge_names) - set(a.kept)
    assert ~(a & b) == ~a | ~b
    assert hash(~~a) == hash(a)
    assert a.num_kept == len(a.kept)


def test_circuits_of_different_graphs_do_not_mix():
    a, b = Circuit.full(Graph(2, 2)), Circuit.full(Graph(2, 3))
    assert a != b
    for combine in (lambda: a & b, lambda: a | b, lambda: a - b):
        with pytest.raises(InputError, match=r"different graphs.*\n.*\n.*heads=2.*\n.*heads=3"):
            combine()


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda k: torch.tensor(k, dtype=torch.float32),
                                  lambda k: torch.tensor(k, dtype=torch.bfloat16)])
def test_keep_may_be_a_list_numpy_or_torch(kind):
    keep = make_circuit(GRAPH, "sparse").keep
    circuit = Circuit(GRAPH, kind(keep.tolist()))
    assert circuit.keep.dtype == bool
    assert np.array_equal(circuit.keep, keep)
    with pytest.raises(ValueError, match="read-only"):
        circuit.keep[0] = True


def test_the_array_handed_in_stays_the_callers():
    keep = np.ones(GRAPH.num_edges, dtype=bool)
    circuit = Circuit(GRAPH, keep)
    keep[:] = False
    assert circuit == Circuit.full(GRAPH)


@pytest.mark.parametrize(("keep", "message"), [
    ([True], r"shape \(26,\)"), ([[True] * 26], r"shape \(1, 26\)"), ([0.5] * 26, "top_k or .threshold"),
    ([float("nan")] * 26, "only 0 and 1"), (["yes"] * 26, "numbers"), ([2] * 26, "only 0 and 1"),
])
def test_what_is_no_choice_of_edges_is_refused(keep, message):
    with pytest.raises(InputError, match=message):
        Circuit(GRAPH, keep)


@pytest.mark.parametrize(("field", "value"), [("provenance", np.float32(3)), ("ablation", {1, 2})])
def test_what_no_file_can_hold_is_refused_at_once(field, value):
    with pytest.raises(InputError, match=rf"Circuit\.{field}\['sha256'\]"):
        Circuit(GRAPH, [1] * 26, **{field: {"kind": "mean", "sha256": value}})


ABLATION = {"kind": "mean", "sha256": "0123456789abcdef" * 4}


@settings(max_examples=20)
@given(data=st.data(), graph=graphs())
def test_files_round_trip(tmp_path_factory, data, graph):
    circuit = data.draw(circuits(graph))
    circuit = Circuit(graph, circuit.keep, ABLATION, {"method": "acdc", "threshold": 0.1, "nested": {"a": [1, 2]}})
    path = tmp_path_factory.mktemp("circuit") / "circuit.json"
    circuit.save(path)
    loaded = Circuit.load(path)
    assert loaded == circuit
    assert (dict(loaded.ablation), dict(loaded.provenance)) == (ABLATION, dict(circuit.provenance))
    assert os.listdir(path.parent) == ["circuit.json"]
    data = json.loads(path.read_text())
    assert data["format"] == "vitsparse.circuit"
    assert data["version"] == 1
    assert data["kept"] == list(circuit.kept)


def damage(**changes):
    def apply(data: dict) -> str:
        return json.dumps(data | changes)
    return apply


def without(field: str):
    return lambda data: json.dumps({name: value for name, value in data.items() if name != field})


@pytest.mark.parametrize(("damaged", "field", "message"), [
    (lambda data: json.dumps(data)[:100], "", "not valid JSON"),
    (lambda data: "", "", "not valid JSON"),
    (lambda data: "[" * 100_000, "", "not valid JSON"),
    (lambda data: "[]", "", "not a circuit file"),
    (lambda data: json.dumps(data)[:-1] + ', "format": 3}', "", "'format' is given twice"),
    (damage(format="vitsparse.ablation"), "", "not a circuit file"),
    (damage(version=2), ": version", "another version"),
    (damage(version="1"), ": version", "another version"),
    (without("kept"), "", "missing or unknown fields"),
    (damage(more=1), "", "missing or unknown fields"),
    (damage(graph={"depth": 2, "heads": 2}), ": graph", "four fields"),
    (damage(graph=GRAPH.to_dict() | {"heads": 0}), ": graph: Graph.heads", "positive"),
    (damage(graph=GRAPH.to_dict() | {"granularity": "qkv"}), r": kept\[0\]", "does not have"),
    (damage(kept=["input->m0", "imput->m1"]), r": kept\[1\]", r"does not have(.*\n)*.*did you mean 'input->m1'"),
    (damage(kept=["input->m0", "input->m0"]), r": kept\[1\]", "listed twice"),
    (damage(kept=["input->m0"] * 27), ": kept", "at most 26 names"),
    (damage(kept={"input->m0": True}), ": kept", "list of edge names"),
    (damage(kept=[7]), r": kept\[0\]", "does not have"),
    (damage(kept=[["input->m0"]]), r": kept\[0\]", "does not have"),
    (damage(ablation={"kind": "mean"}), ": ablation", "damaged"),
    (damage(ablation={"kind": "mean", "sha256": "abc"}), ": ablation", "damaged"),
    (damage(ablation="mean"), ": ablation", "damaged"),
    (damage(provenance=[]), ": provenance", "must be an object"),
])
def test_damaged_files_name_file_and_field(tmp_path, damaged, field, message):
    path = tmp_path / "my circuit.json"
    make_circuit(GRAPH, "dense").save(path)
    path.write_text(damaged(json.loads(path.read_text())))
    with pytest.raises(InputError, match=rf"my circuit\.json{field}\n") as raised:
        Circuit.load(path)
    raised.match(message)


def test_bytes_that_are_no_text_and_missing_files(tmp_path):
    (tmp_path / "circuit.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="not valid JSON"):
        Circuit.load(tmp_path / "circuit.json")
    with pytest.raises(MissingFile, match=r"absent\.json"):
        Circuit.load(tmp_path / "absent.json")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "circuit.json"
    old = make_circuit(GRAPH, "dense", 1)
    old.save(path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        make_circuit(GRAPH, "sparse", 2).save(path)
    monkeypatch.undo()
    assert Circuit.load(path) == old
    assert os.listdir(tmp_path) == ["circuit.json"]


def test_repr_says_what_is_kept():
    text = repr(make_circuit(GRAPH, "constant"))
    assert "of 26 edges" in text
    assert "dead" in text
    assert "constant nodes" in text
