"""The EAP-IG tool's JSON: its published scores, our own back again, and files that are not what they claim."""

from __future__ import annotations

import contextlib
import json
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import circuits
from vitsparse.circuit import Circuit, EdgeScores, Graph, eap_ig_json
from vitsparse.errors import InputError, MissingFile

GRAPH = Graph(2, 2, "qkv")


@pytest.fixture(scope="module")
def published(request):
    path = request.config.rootpath.parent / "shared/data/parity/ioi-eap-ig.json"
    if not path.is_file():
        pytest.skip(f"the published scores are not here: {path}")
    return path


def test_the_published_scores(published):
    """GPT-2 on IOI, of the MIB benchmark: top 800 by magnitude, pruned, are exactly what the file has in the graph."""
    scores, circuit = EdgeScores.load(published), Circuit.load(published)
    assert scores.graph == circuit.graph == Graph(12, 12, "qkv")
    assert (len(scores.values), circuit.num_kept) == (32_491, 756)
    assert scores.top_k(800).prune() == circuit
    best = [scores.graph.edge_name(i) for i in np.argsort(-np.abs(scores.values))[:3]]
    assert best == ["a9.h9->logits", "input->m0", "a10.h7->logits"]
    for n, pruned, nodes in ((32, 21, 13), (64, 45, 18), (162, 145, 35), (324, 276, 47), (649, 608, 73),
                             (1624, 1573, 114), (3249, 3212, 146), (6498, 6498, 158)):
        left = scores.top_k(n).prune()
        ends = {node.split("<")[0] for name in left.kept for node in name.split("->")}
        assert (left.num_kept, len(ends)) == (pruned, nodes)


def test_the_published_file_comes_back(published, tmp_path):
    """Every value of it, the nodes included, although our edges come in another order."""
    scores = EdgeScores.load(published)
    scores.save_eap_ig(tmp_path / "x.json", embed_dim=768, circuit=Circuit.load(published))
    assert json.loads((tmp_path / "x.json").read_text()) == json.loads(published.read_text())


@settings(max_examples=15)
@given(data=st.data(), depth=st.integers(1, 2), heads=st.integers(1, 3))
def test_files_round_trip(tmp_path_factory, data, depth, heads):
    graph, folder = Graph(depth, heads, "qkv"), tmp_path_factory.mktemp("eap_ig")
    values = np.random.default_rng(0).normal(size=graph.num_edges)
    scores, circuit = EdgeScores(graph, values), data.draw(circuits(graph))
    scores.save_eap_ig(folder / "scores", embed_dim=8, circuit=circuit)  # known by what is in it, whatever its name
    circuit.save_eap_ig(folder / "circuit", embed_dim=8)
    assert np.array_equal(EdgeScores.load(folder / "scores").values, values)
    assert Circuit.load(folder / "scores") == Circuit.load(folder / "circuit") == circuit
    assert np.array_equal(EdgeScores.load(folder / "circuit").values, circuit.keep)
    assert EdgeScores.load(folder / "scores").provenance["cfg"]["d_model"] == 8
    scores.save_eap_ig(folder / "scores", embed_dim=8)
    assert Circuit.load(folder / "scores").num_kept == 0


def test_edges_are_matched_by_name(tmp_path):
    """That tool's edges go sender by sender; ours reader by reader."""
    EdgeScores(GRAPH, range(GRAPH.num_edges)).save_eap_ig(tmp_path / "x.json", embed_dim=8)
    data = json.loads((tmp_path / "x.json").read_text())
    data["edges"] = dict(sorted(data["edges"].items()))
    (tmp_path / "x.json").write_text(json.dumps(data))
    assert EdgeScores.load(tmp_path / "x.json").values.tolist() == list(range(GRAPH.num_edges))


def test_nodes_follow_from_edges(tmp_path):
    keep = np.zeros(GRAPH.num_edges, dtype=bool)
    for name in ("input->a0.h1<k>", "a0.h1->logits", "m0->m1", "a1.h0->logits"):
        keep[GRAPH.edge_index(name)] = True
    Circuit(GRAPH, keep).save_eap_ig(tmp_path / "x.json", embed_dim=8)
    nodes = json.loads((tmp_path / "x.json").read_text())["nodes"]
    assert {name for name, node in nodes.items() if node["in_graph"]} == {"input", "a0.h1", "logits"}


@pytest.mark.parametrize("graph", [Graph(2, 2), Graph(2, 2, "block"), Graph(2, 2, "qkv", 2)])
def test_graphs_that_the_tool_does_not_have_are_refused(tmp_path, graph):
    with pytest.raises(InputError, match=r"no such graph[\s\S]*granularity='qkv'"):
        Circuit.full(graph).save_eap_ig(tmp_path / "x.json", embed_dim=8)
    with pytest.raises(InputError, match="of another graph than the scores"):
        EdgeScores(GRAPH, np.zeros(GRAPH.num_edges)).save_eap_ig(tmp_path / "x.json", embed_dim=8,
                                                                 circuit=Circuit.full(graph))
    with pytest.raises(InputError, match="where: embed_dim"):
        Circuit.full(GRAPH).save_eap_ig(tmp_path / "x.json", embed_dim=8.0)
    assert os.listdir(tmp_path) == []


def changed(part: str, **entries):
    """Set entries of a part; ``None`` takes one out."""
    def apply(data: dict) -> str:
        merged = {name: value for name, value in (data[part] | entries).items() if value is not None}
        return json.dumps(data | {part: merged})
    return apply


def scored(score: object, in_graph: object = True):
    return changed("edges", **{"m0->m1": {"score": score, "in_graph": in_graph}})


def doubled(data: dict) -> str:
    return json.dumps(data).replace('"m0->m1"', '"m0->logits"')


@pytest.mark.parametrize(("damaged", "field", "message"), [
    (lambda data: json.dumps(data)[:-9], "", "not valid JSON"),
    (lambda data: '{"cfg": ' * 100_000, "", "not valid JSON"),
    (lambda data: json.dumps(data | {"edges": [1]}), "", "damaged fields"),
    (lambda data: json.dumps(data | {"more": {}}), "", "unknown"),
    (lambda data: json.dumps({"cfg": {}, "edges": {}}), "", "missing"),
    (doubled, "", "'m0->logits' is given twice"),
    (changed("cfg", n_heads=3), ": edges", r"edge is missing\n.*\n  expected: input->a0\.h2<q>: 75 edges"),
    (changed("cfg", n_layers=48, n_heads=48), ": edges", r"missing.*\n.*\n  expected: input->a0\.h2<q>"),
    (changed("cfg", n_layers=10**9), ": cfg", "larger than any"),
    (changed("cfg", n_layers=1), ": edges", r"does not have\n.*\n.*heads=2.*\n  found: 'input->a1.h0<q>'"),
    (changed("cfg", n_layers="2"), ": cfg", "positive integer for depth"),
    (changed("cfg", n_layers=True), ": cfg", "positive integer for depth"),
    (changed("cfg", d_model="8"), ": cfg", "shape of the model"),
    (changed("cfg", n_heads=None), ": cfg", "shape of the model"),
    (changed("cfg", parallel_attn_mlp=True), ": cfg: parallel_attn_mlp", "reads the heads of its own layer"),
    (changed("nodes", m7={"in_graph": True}), ": nodes", "'m7' is unknown"),
    (changed("nodes", m1=None), ": nodes", "'m1' is missing"),
    (changed("nodes", m1=True), ": nodes: m1", "in the graph or not"),
    (changed("nodes", m1={"in_graph": True, "neurons": [True]}), ": nodes: m1", "neurons are not understood"),
    (changed("edges", **{"m0->m1": None}), ": edges", r"missing[\s\S]*m0->m1"),
    (changed("edges", **{"m1->m0": {"score": 1.0, "in_graph": True}}), ": edges", r"does not have[\s\S]*'m1->m0'"),
    (changed("edges", **{"m0->m1": 0.5}), ": edges: m0->m1", r"has a score[\s\S]*found: 0\.5"),
    (scored(math.nan), "", "NaN is not JSON"),
    (scored(-math.inf), "", "Infinity is not JSON"),
    (lambda data: scored(0)(data).replace('"score": 0,', '"score": 1e999,'), ": edges: m0->m1", "a finite number"),
    (scored(10**400), ": edges: m0->m1", "a finite number"),
    (lambda data: scored(0)(data).replace('"score": 0,', f'"score": {"7" * 5000},'), "", "not valid JSON"),
    (scored("1.0"), ": edges: m0->m1", "a finite number"),
    (scored(True), ": edges: m0->m1", "a finite number"),
    (changed("edges", **{"m0->m1": {"score": 1.0, "in_graph": True, "neurons": []}}), ": edges: m0->m1", "has a score"),
    (scored(1.0, 1), ": edges: m0->m1", "true or false"),
])
def test_damaged_files_name_file_and_field(tmp_path, damaged, field, message):
    path = tmp_path / "their file.json"
    EdgeScores(GRAPH, np.linspace(0.5, 1, GRAPH.num_edges)).save_eap_ig(path, embed_dim=8)
    path.write_text(damaged(json.loads(path.read_text())))
    for load in (EdgeScores.load, Circuit.load):
        with pytest.raises(InputError, match=rf"their file\.json{field}[:\n]") as raised:
            load(path)
        raised.match(message)


WORDS = st.sampled_from(("", "7", "score", "in_graph", "n_heads", "m0"))
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
                    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("small") / "x.json"
    Circuit.full(Graph(1, 1, "qkv")).save_eap_ig(path, embed_dim=8)
    return path.read_text()


@settings(max_examples=60)
@given(data=st.data(), value=JSON)
def test_no_value_anywhere_does_more_harm_than_a_complaint(small, data, value):
    content = part = json.loads(small)
    for _ in range(data.draw(st.integers(0, 2))):
        inner = [entry for entry in part.values() if isinstance(entry, dict)]
        part = data.draw(st.sampled_from(inner)) if inner else part
    part[data.draw(st.sampled_from(sorted(part)))] = value
    with contextlib.suppress(InputError):
        assert np.isfinite(eap_ig_json.parse(content, "fuzzed.json").scores).all()


def test_other_files_are_told_apart(tmp_path):
    Circuit.full(GRAPH).save(tmp_path / "circuit.json")
    with pytest.raises(InputError, match=r"not a JSON file of the EAP-IG.*\n.*circuit\.json[\s\S]*found: \['format'"):
        EdgeScores.load(tmp_path / "circuit.json")
    scores = EdgeScores(GRAPH, range(GRAPH.num_edges))
    scores.save(tmp_path / "scores.json")  # whatever its name; and with a header whose length begins like a JSON object
    data = (tmp_path / "scores.json").read_bytes()
    size = int.from_bytes(data[:8], "little")
    more = (ord("{") - size) % 256
    (tmp_path / "scores.json").write_bytes((size + more).to_bytes(8, "little") + data[8: 8 + size] + b" " * more
                                           + data[8 + size:])
    assert np.array_equal(EdgeScores.load(tmp_path / "scores.json").values, scores.values)
    with pytest.raises(MissingFile):
        EdgeScores.load(tmp_path / "absent.json")
