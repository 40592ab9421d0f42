"""The operator graph: its list of edges, and what its cuts do to the sub-blocks around them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitsparse.circuit import GRANULARITIES, Circuit, EdgeScores, Graph
from vitsparse.circuit.operator import inputs
from vitsparse.errors import InputError

EMBEDDING = """x->size, x->proj, proj->flatten, flatten->transpose, cls_token->expand, size->expand, expand->cat,
    transpose->cat, cat->add, pos_embed->add"""
BLOCK = """in->norm1; norm1->shape, shape->B, shape->N, shape->C; norm1->qkv; C->floordiv;
    qkv, B, N, floordiv->reshape; reshape->permute; permute->q, permute->k, permute->v; k->transpose;
    q, transpose->matmul; matmul->scale; scale->softmax; softmax->attn_drop; attn_drop, v->matmul; matmul->transpose;
    transpose, B, N, C->reshape; reshape->proj; proj->proj_drop; proj_drop->drop_path; in, drop_path->add; add->norm2;
    norm2->fc1; fc1->act; act->drop1; drop1->fc2; fc2->drop2; drop2->drop_path; add, drop_path->add"""
TAIL = "add->norm, norm->getitem, getitem->head, head->output"


def graph(depth: int, heads: int = 2) -> Graph:
    return Graph(depth, heads, "operator")


def without(graph: Graph, *edges: str) -> Circuit:
    keep = np.ones(graph.num_edges, dtype=bool)
    keep[[graph.edge_index(edge) for edge in edges]] = False
    return Circuit(graph, keep)


def listed(text: str) -> list[str]:
    """``a, b->c`` is two edges."""
    edges, senders = [], []
    for word in text.replace(";", ",").replace("\n", " ").split(","):
        sender, arrow, reader = word.strip().partition("->")
        senders.append(sender)
        if arrow:
            edges += [f"{sender}->{reader}" for sender in senders]
            senders = []
    return edges


def bare(name: str) -> str:
    """An edge without the block and without the numbers of operators that occur twice."""
    return "->".join(end.rpartition(".")[2].removesuffix("_1") for end in name.split("->"))


@pytest.mark.parametrize(("depth", "heads", "edges", "shapes"), [
    (12, 8, 518, 134), (12, 1, 518, 134), (1, 3, 56, 13), (2, 4, 98, 24), (24, 16, 1022, 266),
])
def test_counts(depth, heads, edges, shapes):
    found = graph(depth, heads)
    assert found.num_edges == len(found.edge_names) == len(set(found.edge_names)) == edges
    assert (len(found.shape_only), found.shape_only.sum()) == (edges, shapes)
    assert [found.edge_index(name) for name in found.edge_names] == list(range(edges))


def test_edges_are_the_listed_ones_in_the_listed_order():
    names = graph(3).edge_names
    assert list(map(bare, names)) == listed(EMBEDDING) + 3 * listed(BLOCK) + listed(TAIL)
    assert names[:2] == ("x->size", "x->proj")
    assert names[-4:] == ("b2.add_1->norm", "norm->getitem", "getitem->head", "head->output")
    assert (names[10], names[10 + 42 + 5]) == ("b0.in->b0.norm1", "b1.norm1->b1.qkv")


def test_shapes_are_what_only_sizes_go_through():
    found = graph(2)
    names = {name for name, yes in zip(found.edge_names, found.shape_only, strict=True) if yes}
    sizes = {"size", "shape", "B", "N", "C", "floordiv"}
    ends = {name: {end.rpartition(".")[2] for end in name.split("->")} for name in found.edge_names}
    assert names == {name for name in found.edge_names if ends[name] & sizes}
    assert not found.shape_only.flags.writeable
    for granularity in GRANULARITIES:
        other = Graph(2, 3, granularity)
        assert other.shape_only.tolist() == [False] * other.num_edges


def test_what_the_graph_refuses():
    with pytest.raises(InputError, match="no MLP groups"):
        Graph(2, 2, "operator", mlp_groups=2)
    with pytest.raises(InputError, match=r"operator graph[\s\S]*expected: one of \('qkv'"):
        _ = graph(2).reader_nodes
    with pytest.raises(InputError, match=r"did you mean 'operator'"):
        Graph(2, 2, "operators")
    with pytest.raises(InputError, match=r"unknown edge"):
        graph(2).edge_index("b2.in->b2.norm1")


def test_files(tmp_path):
    circuit = without(graph(2), "b1.norm1->b1.qkv", "x->size")
    circuit.save(tmp_path / "circuit.json")
    assert Circuit.load(tmp_path / "circuit.json") == circuit
    scores = EdgeScores(circuit.graph, np.arange(circuit.graph.num_edges))
    scores.save(tmp_path / "scores")
    assert EdgeScores.load(tmp_path / "scores").top_k(5).kept == circuit.graph.edge_names[-5:]


A, M, BOTH = ["a0"], ["m0"], ["a0", "m0"]


@pytest.mark.parametrize(("edges", "dead", "constant"), [
    ([], [], []),
    (["x->size", "b0.norm1->b0.shape", "b0.floordiv->b0.reshape", "b0.C->b0.reshape_1"], [], []),
    (["b0.in->b0.norm1"], [], A), (["b0.norm1->b0.qkv"], [], A),
    (["b0.qkv->b0.reshape"], A, []), (["b0.reshape->b0.permute"], A, []), (["b0.permute->b0.v"], A, []),
    (["b0.softmax->b0.attn_drop"], A, []), (["b0.reshape_1->b0.proj"], A, []),
    (["b0.proj->b0.proj_drop"], A, []), (["b0.drop_path->b0.add"], A, []),
    (["b0.q->b0.matmul"], [], []), (["b0.permute->b0.k", "b0.scale->b0.softmax"], [], []),
    (["b0.add->b0.norm2"], [], M), (["b0.norm2->b0.fc1"], [], M), (["b0.act->b0.drop1"], [], M),
    (["b0.fc2->b0.drop2"], M, []), (["b0.drop_path_1->b0.add_1"], M, []),
    (["b0.in->b0.add"], [], []),
    (["b0.in->b0.add", "b0.norm1->b0.qkv"], ["input"], ["a0", "m0", "a1", "m1"]),
    (["b0.in->b0.add", "b0.proj->b0.proj_drop"], ["input", "a0"], ["m0", "a1", "m1"]),
    (["b1.in->b1.add"], [], []), (["b1.add->b1.add_1"], [], []),
    (["b1.in->b1.add", "b1.proj->b1.proj_drop"], ["input", "a0", "m0", "a1"], ["m1"]),
    (["b1.in->b1.add", "b1.add->b1.add_1", "b1.norm2->b1.fc1"], ["input", "a0", "m0", "a1"], ["m1"]),
    (["x->proj"], [], ["input", "a0", "m0", "a1", "m1"]), (["transpose->cat"], [], ["input", "a0", "m0", "a1", "m1"]),
    (["cat->add"], [], ["input", "a0", "m0", "a1", "m1"]), (["pos_embed->add"], [], []), (["expand->cat"], [], []),
    (["cat->add", "pos_embed->add"], ["input"], ["a0", "m0", "a1", "m1"]),
    (["transpose->cat", "expand->cat", "pos_embed->add"], ["input"], ["a0", "m0", "a1", "m1"]),
    (["b1.add_1->norm"], ["input", "a0", "m0", "a1", "m1"], []),
    (["head->output"], ["input", "a0", "m0", "a1", "m1"], []),
])
def test_states_of_sub_blocks(edges, dead, constant):
    circuit = without(graph(2), *edges)
    assert (list(circuit.dead), list(circuit.constant)) == (dead, constant)


@pytest.mark.parametrize(("edges", "uniform"), [
    (["b0.q->b0.matmul"], ("a0",)), (["b1.k->b1.transpose", "b0.scale->b0.softmax"], ("a0", "a1")),
    (["b0.q->b0.matmul", "b0.permute->b0.v"], ()), (["b0.q->b0.matmul", "b0.norm1->b0.qkv"], ()),
    (["b0.permute->b0.v"], ()),
])
def test_uniform_attention_is_live(edges, uniform):
    assert without(graph(2), *edges).uniform == uniform
    assert Circuit.full(Graph(2, 2)).uniform == ()
    assert (f"{len(uniform)} uniform" in repr(without(graph(2), *edges))) == bool(uniform)


def test_states_of_a_published_circuit():
    """What was drawn of one: three sub-blocks gone, four that no longer see the image, shapes cut for good measure."""
    gone = [f"b{layer}.{edge}" for layer, edge in ((3, "drop_path_1->b3.add_1"), (10, "drop_path->b10.add"),
                                                   (11, "proj->b11.proj_drop"))]
    blind = [f"b{layer}.in->b{layer}.norm1" for layer in (8, 9)] + [f"b{layer}.add->b{layer}.norm2" for layer in (6, 8)]
    shapes = ["x->size", *(f"b{layer}.norm1->b{layer}.shape" for layer in range(12))]
    circuit = without(graph(12, 8), *gone, *blind, *shapes)
    assert (circuit.num_kept, circuit.graph.num_edges) == (518 - 20, 518)
    assert (circuit.dead, circuit.constant) == (("m3", "a10", "a11"), ("m6", "a8", "m8", "a9"))


def test_output_biases_follow_the_stream():
    def biases(*edges: str) -> list[tuple[int, ...]]:
        return [entry.biases for entry in inputs(2, without(graph(2), *edges).keep)]

    assert biases() == [(), (0,), (0,), (0, 1), (0, 1)]
    assert biases("b0.reshape_1->b0.proj") == biases()  # no sender, and b_O all the same
    assert biases("b0.proj->b0.proj_drop") == [(), (), (), (1,), (1,)]
    assert biases("b0.add->b0.add_1") == [(), (0,), (), (1,), (1,)]
    assert biases("b1.in->b1.add") == [(), (0,), (0,), (1,), (1,)]
    assert biases("b1.norm1->b1.qkv", "b1.add->b1.norm2") == [(), (0,), (), (), (0, 1)]


@given(depth=st.integers(1, 3), share=st.sampled_from((0.5, 0.8, 0.95)), seed=st.integers(0, 10**6))
def test_prune_keeps_what_lies_between_the_ends(depth, share, seed):
    found = graph(depth)
    circuit = Circuit(found, np.random.default_rng(seed).random(found.num_edges) < share)
    pruned = circuit.prune()
    shapes = found.shape_only
    assert (pruned.keep <= circuit.keep).all()
    assert (pruned.keep[shapes] == circuit.keep[shapes]).all()
    assert pruned.prune() == pruned
    assert Circuit.full(found).prune() == Circuit.full(found)
    into, out = Counter(), Counter()
    for name, kept in zip(found.edge_names, pruned.keep & ~shapes, strict=True):
        sender, reader = name.split("->")
        into[reader] += kept
        out[sender] += kept
    for name in pruned.kept:
        sender, reader = name.split("->")
        if not shapes[found.edge_index(name)]:
            assert into[sender] or sender in ("x", "cls_token", "pos_embed") or sender.endswith(".in")
            assert out[reader] or reader == "output" or reader == "add" or reader.endswith(".add_1")
