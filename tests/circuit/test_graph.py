"""The graph: edge counts, canonical order, names."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.strategies import graphs
from vitsparse.circuit import GRANULARITIES, Graph
from vitsparse.errors import InputError
from vitsparse.model.vit import ViT


@pytest.mark.parametrize(("granularity", "edges"), [("qkv", 15355), ("head", 5659), ("layer", 1417), ("block", 325)])
def test_edge_counts_of_the_large_model(granularity, edges):
    assert Graph(12, 8, granularity).num_edges == edges


@pytest.mark.parametrize(("depth", "heads", "granularity", "edges"), [
    (12, 12, "qkv", 32491), (12, 12, "head", 11611), (12, 12, "layer", 2041),
    (12, 3, "qkv", 2845), (12, 6, "qkv", 9163), (24, 16, "qkv", 231877), (6, 6, "qkv", 2188), (2, 2, "qkv", 46),
])
def test_published_edge_counts(depth, heads, granularity, edges):
    assert Graph(depth, heads, granularity).num_edges == edges


@given(depth=st.integers(1, 10), heads=st.integers(1, 10), groups=st.integers(1, 6))
def test_closed_formulas(depth, heads, groups):
    def writers(layer: int, attention: int = heads) -> int:
        return 1 + layer * (attention + groups)

    layers = range(depth)
    expected = {
        "head": writers(depth) + sum(writers(l) + heads + heads * writers(l) for l in layers),
        "qkv": writers(depth) + sum(writers(l) + heads + 3 * heads * writers(l) for l in layers),
        "layer": writers(depth) + sum(writers(l) + heads + writers(l) for l in layers),
        "block": writers(depth, 1) + sum(writers(l, 1) + 1 + writers(l, 1) for l in layers),
    }
    for granularity in GRANULARITIES:
        graph = Graph(depth, heads, granularity, groups)
        assert graph.num_edges == len(graph.edge_names) == len(set(graph.edge_names)) == expected[granularity]


def test_canonical_order_by_head():
    graph = Graph(2, 2)
    assert graph.senders == ("input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1")
    assert graph.readers == ("a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits")
    assert graph.edge_names == (
        "input->a0.h0", "input->a0.h1",
        "input->m0", "a0.h0->m0", "a0.h1->m0",
        "input->a1.h0", "a0.h0->a1.h0", "a0.h1->a1.h0", "m0->a1.h0",
        "input->a1.h1", "a0.h0->a1.h1", "a0.h1->a1.h1", "m0->a1.h1",
        "input->m1", "a0.h0->m1", "a0.h1->m1", "m0->m1", "a1.h0->m1", "a1.h1->m1",
        "input->logits", "a0.h0->logits", "a0.h1->logits", "m0->logits", "a1.h0->logits", "a1.h1->logits", "m1->logits",
    )


def test_canonical_order_of_the_other_granularities():
    assert Graph(1, 2, "qkv").edge_names == (
        "input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>",
        "input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>",
        "input->m0", "a0.h0->m0", "a0.h1->m0",
        "input->logits", "a0.h0->logits", "a0.h1->logits", "m0->logits")
    assert Graph(1, 2, "layer").edge_names == (
        "input->a0", "input->m0", "a0.h0->m0", "a0.h1->m0",
        "input->logits", "a0.h0->logits", "a0.h1->logits", "m0->logits")
    assert Graph(1, 2, "block").edge_names == (
        "input->a0", "input->m0", "a0->m0", "input->logits", "a0->logits", "m0->logits")
    assert Graph(1, 1, "head", mlp_groups=2).edge_names == (
        "input->a0.h0", "input->m0", "a0.h0->m0", "input->logits", "a0.h0->logits", "m0.g0->logits", "m0.g1->logits")


@given(graph=graphs())
def test_every_sender_before_a_reader_is_connected_to_it_once(graph):
    """The order of names alone says who comes before whom; each reader drives the senders of its own name."""
    def depth_of(name: str) -> float:
        kind, layer = re.match(r"(a|m|input|logits)(\d*)", name).groups()
        return {"input": -1, "logits": 1e9}.get(kind) or 2 * int(layer) + (kind == "m")

    expected = [f"{sender}->{reader}" for reader in graph.readers for sender in graph.senders
                if depth_of(sender) < depth_of(reader)]
    assert list(graph.edge_names) == expected
    for reader in graph.reader_nodes:
        assert graph.edge_names[reader.edges] == tuple(f"{s}->{reader.name}" for s in graph.senders[: reader.fan_in])
        node = reader.name.split("<")[0]
        assert all(graph.senders[i] == node or graph.senders[i].startswith(f"{node}.") for i in reader.drives)
    driven = {i for reader in graph.reader_nodes for i in reader.drives}
    assert driven == set(range(1, len(graph.senders)))


@given(graph=graphs(), data=st.data())
def test_names_and_indices_are_inverse(graph, data):
    index = data.draw(st.integers(0, graph.num_edges - 1))
    assert graph.edge_index(graph.edge_name(index)) == index


@given(graph=graphs())
def test_a_graph_is_four_fields(graph):
    assert Graph.from_dict(graph.to_dict()) == graph
    assert hash(Graph.from_dict(graph.to_dict())) == hash(graph)
    assert eval_repr(graph) == graph


def eval_repr(graph: Graph) -> Graph:
    """The graph that ``repr`` spells out."""
    fields = dict(re.findall(r"(\w+)='?(\w+)'?", repr(graph)))
    return Graph(int(fields["depth"]), int(fields["heads"]), fields["granularity"], int(fields.get("mlp_groups", 1)))


def test_the_graph_of_a_model():
    model = ViT(img_size=8, patch_size=4, num_classes=2, embed_dim=12, depth=3, num_heads=4, mlp_ratio=0.5)
    assert Graph.of(model, granularity="qkv", mlp_groups=6) == Graph(3, 4, "qkv", 6)
    with pytest.raises(InputError, match="more MLP groups than hidden units"):
        Graph.of(model, mlp_groups=7)
    with pytest.raises(InputError, match=r"found: Linear[\s\S]*from_timm"):
        Graph.of(nn.Linear(2, 2))


@pytest.mark.parametrize(("arguments", "message"), [
    ((0, 2), "Graph.depth"), ((2, -1), "Graph.heads"), ((2, 2, "head", 0), "Graph.mlp_groups"),
    ((2.0, 2), "Graph.depth"), ((True, 2), "Graph.depth"), ((2, "2"), "Graph.heads"),
    ((2, 2, "heads"), "did you mean 'head'"),
])
def test_impossible_graphs_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Graph(*arguments)


@pytest.mark.parametrize("fields", [
    {}, [], None, {"depth": 1, "heads": 1, "granularity": "head"},
    {"depth": 1, "heads": 1, "granularity": "head", "mlp_groups": 1, "more": 1},
    {"depth": 0, "heads": 1, "granularity": "head", "mlp_groups": 1},
    {"depth": 1, "heads": 1, "granularity": ["head"], "mlp_groups": 1},
    {"depth": 10**9, "heads": 1, "granularity": "head", "mlp_groups": 1},
    {"depth": 1, "heads": 1, "granularity": "head", "mlp_groups": 10**9},
    {"depth": 5000, "heads": 3, "granularity": "block", "mlp_groups": 2},
])
def test_damaged_fields_name_the_place(fields):
    with pytest.raises(InputError, match="the place"):
        Graph.from_dict(fields, where="the place")


def test_unknown_edges_are_refused():
    graph = Graph(2, 2)
    with pytest.raises(InputError, match=r"did you mean 'a0\.h1->m1'"):
        graph.edge_index("a0.h1>m1")
    for index in (-1, graph.num_edges):
        with pytest.raises(InputError, match=r"0 \.\. 25"):
            graph.edge_name(index)
