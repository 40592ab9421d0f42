"""Back to a plain ViT where one computes the same; refused, with the reason, everywhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiler.cases import Case, cases
from tests.strategies import SEEDS, configs, graphs_of, make_ablation, make_images, make_model
from tests.tolerances import BACKEND, ORACLE, error
from vitsparse.circuit import Circuit, Graph
from vitsparse.circuit.liveness import depends_on_input, reaches_logits
from vitsparse.errors import InputError
from vitsparse.model.config import ViTConfig


def without(graph, nodes: set[str]) -> Circuit:
    return Circuit(graph, np.array([name.split("->")[0] not in nodes for name in graph.edge_names]))


@st.composite
def cut_nodes(draw) -> Case:
    """Whole senders cut, but for `input`, under zero ablation."""
    config, seed = draw(configs()), draw(SEEDS)
    model, graph = make_model(config, seed, torch.float64), draw(graphs_of(config))
    gone = {name for name in graph.senders[1:] if draw(st.booleans())}
    return Case(model, without(graph, gone), make_ablation(model, graph, "zero"),
                make_images(config, 2, seed, torch.float64))


@settings(max_examples=60)
@given(cut_nodes())
def test_circuits_of_whole_nodes_have_a_dense_twin(case):
    dense = case.sparse().to_dense()
    with torch.no_grad():
        assert error(dense(case.images), case.exact) <= ORACLE
    assert {k: v.shape for k, v in dense.state_dict().items()} == {k: v.shape for k, v in case.state.items()}


@settings(max_examples=100)
@given(cases(dtype=torch.float64))
def test_the_twin_is_equal_or_refused(case):
    circuit, graph = case.circuit, case.circuit.graph
    live = depends_on_input(graph, circuit.keep) & reaches_logits(graph, circuit.keep)
    names = {name for name, alive in zip(graph.senders, live, strict=True) if alive}
    driven = {reader.name: {graph.senders[i] for i in reader.drives} for reader in graph.reader_nodes}
    cut = 0
    for name, keep in zip(graph.edge_names, circuit.keep, strict=True):
        sender, reader = name.split("->")
        cut += bool(not keep and sender in names and (reader == "logits" or driven[reader] & names))
    sparse = case.sparse()
    try:
        dense = sparse.to_dense()
    except InputError as refusal:
        assert (f"{cut} cut edges" in str(refusal)) == (cut > 0)  # noqa: PT017
        return
    assert cut == 0
    with torch.no_grad():
        assert error(dense(case.images), case.exact) <= 1e-6  # offsets may vary by as much over tokens


CONFIG = ViTConfig(img_size=6, patch_size=2, in_chans=1, num_classes=5, embed_dim=16, depth=2, num_heads=2,
                   init_values=0.5)


def case_without(ablation: str, **graph_options) -> Case:
    model, graph = make_model(CONFIG, 1), Graph(2, 2, **graph_options)
    return Case(model, without(graph, {"a1.h0"}), make_ablation(model, graph, ablation), make_images(CONFIG, 2, 1))


def test_means_differ_from_token_to_token():
    with pytest.raises(InputError, match="one that differs from token to token") as refusal:
        case_without("mean").sparse().to_dense()
    assert "input of m1" in str(refusal.value)


def test_a_constant_node_read_by_one_head_alone_is_refused():
    """Heads of one layer have one input in a plain ViT, and a bias before them reaches both."""
    model, graph = make_model(CONFIG, 1), Graph(2, 2)
    cut = {name for name in graph.edge_names if name.endswith("->m0")} | {"m0->a1.h1", "m0->m1"}
    circuit = Circuit(graph, np.array([name not in cut for name in graph.edge_names]))
    case = Case(model, circuit, make_ablation(model, graph, "zero"), make_images(CONFIG, 2, 1))
    with pytest.raises(InputError, match="no plain ViT computes this circuit"):
        case.sparse().to_dense()


def test_a_constant_node_read_by_all_becomes_a_bias():
    """Also where it takes its LayerScale with it."""
    model, graph = make_model(CONFIG, 1), Graph(2, 2)
    keep = np.array([not name.endswith("->m0") for name in graph.edge_names])
    case = Case(model, Circuit(graph, keep), make_ablation(model, graph, "zero"), make_images(CONFIG, 2, 1))
    assert case.circuit.constant == ("m0",)
    with torch.no_grad():
        assert error(case.sparse().to_dense()(case.images), case.exact) <= BACKEND


def test_what_was_trained_goes_with_it():
    case = case_without("zero")
    sparse = case.sparse()
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter.mul_(1.1)
        dense = sparse.to_dense()
        assert error(dense(case.images), sparse(case.images)) <= BACKEND
        assert not dense.training
        dense.head.weight.zero_()
        assert sparse.head.weight.abs().sum() > 0


def test_constant_logits_have_no_twin():
    model, graph = make_model(CONFIG, 1), Graph(2, 2)
    case = Case(model, Circuit(graph, [False] * graph.num_edges), make_ablation(model, graph, "zero"),
                make_images(CONFIG, 2, 1))
    with pytest.raises(InputError, match="do not depend on the image"):
        case.sparse().to_dense()
