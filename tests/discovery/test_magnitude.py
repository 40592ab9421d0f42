"""The baseline of weights alone, against the product of matrices edge by edge."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planted import two_roads, two_roads_edges
from tests.strategies import SEEDS, configs, graphs_of, make_ablation, make_model
from vitsparse.circuit import Graph
from vitsparse.discovery import magnitude
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation
from vitsparse.model.config import ViTConfig
from vitsparse.model.vit import ViT

CONFIG = ViTConfig(img_size=6, patch_size=2, in_chans=1, num_classes=5, embed_dim=15, depth=2, num_heads=3)


def scores_of(model: ViT, graph: Graph) -> np.ndarray:
    return magnitude(model, graph=graph, ablation=Ablation.zero(model, graph)).values


def by_name(model: ViT, graph: Graph, edge: str) -> float:
    """|| W_j diag(gamma) C diag(lambda) W_i ||, with the matrices picked by the names of the two nodes."""
    state = {name: value.double() for name, value in model.state_dict().items()}
    sender, reader = edge.split("->")
    return float(torch.linalg.matrix_norm(reads(model, state, reader) @ writes(model, graph, state, sender)))


def writes(model: ViT, graph: Graph, state: dict, name: str) -> torch.Tensor:
    """C diag(lambda) W [D, n] of a sender."""
    layer, part = (int(x) if x else None for x in re.fullmatch(r"[a-z]+(\d*)(?:\.[gh](\d+))?", name).groups())
    if name == "input":
        weight = state["patch_embed.proj.weight"].flatten(1)
    else:
        where = ("attn.proj", "ls1", model.num_heads) if name[0] == "a" else ("mlp.fc2", "ls2", graph.mlp_groups)
        weight = state[f"blocks.{layer}.{where[0]}.weight"]
        width = weight.shape[1]
        weight = weight if part is None else weight[:, part * width // where[2]: (part + 1) * width // where[2]]
        scale = state.get(f"blocks.{layer}.{where[1]}.gamma")
        weight = weight if scale is None else torch.diag(scale) @ weight
    D = model.embed_dim
    return (torch.eye(D, dtype=torch.float64) - torch.ones(D, D, dtype=torch.float64) / D) @ weight


def reads(model: ViT, state: dict, name: str) -> torch.Tensor:
    """W diag(gamma) [n, D] of a reader."""
    layer, head, part = re.fullmatch(r"[a-z]+(\d*)(?:\.h(\d+))?(?:<([qkv])>)?", name).groups()
    if name == "logits":
        norm = "norm" if model.global_pool == "token" else "fc_norm"
        return state["head.weight"] @ torch.diag(state[f"{norm}.weight"])
    if name[0] == "m":
        return state[f"blocks.{layer}.mlp.fc1.weight"] @ torch.diag(state[f"blocks.{layer}.norm2.weight"])
    weight = state[f"blocks.{layer}.attn.qkv.weight"] @ torch.diag(state[f"blocks.{layer}.norm1.weight"])
    rows = torch.arange(len(weight)).reshape(3, model.num_heads, -1)
    rows = rows if head is None else rows[:, int(head)]
    return weight[(rows if part is None else rows["qkv".index(part)]).flatten()]


@settings(max_examples=15)
@given(data=st.data(), config=configs(), seed=SEEDS)
def test_scores_are_the_sizes_of_the_products(data, config, seed):
    graph, model = data.draw(graphs_of(config)), make_model(config, seed)
    expected = [by_name(model, graph, edge) for edge in graph.edge_names]
    assert np.allclose(scores_of(model, graph), expected, rtol=1e-6)


@pytest.mark.parametrize(("granularity", "groups"), [("qkv", 1), ("head", 2), ("layer", 1), ("block", 2)])
def test_what_is_not_connected_scores_nothing(granularity, groups):
    """The planted model's weights are zero wherever it has no road."""
    model = two_roads()
    graph = Graph.of(model, granularity=granularity, mlp_groups=groups)
    values = scores_of(model, graph)
    strong = {graph.edge_name(i) for i in np.flatnonzero(values > 1e-6 * values.max())}
    true = two_roads_edges(granularity, groups)
    assert strong >= true
    assert len(strong) < len(true) + graph.num_edges / 4  # what a road leads to, but whose own output nobody reads


def test_a_direction_that_layernorm_removes_scores_nothing():
    model = make_model(CONFIG)
    with torch.no_grad():
        model.blocks[0].attn.proj.weight[:, :5] = torch.rand(5)  # head 0 moves all channels together
    graph = Graph.of(model)
    values = scores_of(model, graph)
    gone = np.array([name.startswith("a0.h0->") for name in graph.edge_names])
    assert values[gone].max() < 1e-6 * values[~gone].min()


def test_subspaces_that_do_not_meet_score_nothing():
    """Heads write into one subspace and MLPs read another; rounding leaves squares a little below zero."""
    model = make_model(CONFIG, dtype=torch.float64)
    mixed = torch.randn(15, 15, dtype=torch.float64)
    mixed[:, 0] = 1.0
    basis = torch.linalg.qr(mixed)[0][:, 1:]  # of the directions that a LayerNorm leaves
    with torch.no_grad():
        for block in model.blocks:
            block.norm2.weight.fill_(1.0)
            block.attn.proj.weight.copy_(basis[:, :7] @ block.attn.proj.weight[:7])
            block.mlp.fc1.weight.copy_(block.mlp.fc1.weight[:, :7] @ basis[:, 7:].T)
    graph = Graph.of(model)
    values = scores_of(model, graph)
    apart = np.array([name.startswith("a") and "->m" in name for name in graph.edge_names])
    assert values[apart].max() < 1e-6 < values[~apart].min()


def test_nothing_is_measured_and_scores_say_so():
    model, graph = make_model(CONFIG), Graph(2, 3)
    ablation = make_ablation(model, graph, "mean")
    found = [magnitude(model, batches, graph=graph, ablation=ablation, metric="kl", progress=False)
             for batches in ([], None)]
    assert np.array_equal(found[0].values, found[1].values)
    assert found[0].values.min() > 0
    assert set(found[0].provenance) == {"method", "model", "ablation", "vitsparse", "torch"}
    assert found[0].top_k(3).ablation == ablation.describe()
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_model_without_classifier():
    model = make_model(CONFIG)
    model.reset_classifier(0)
    graph = Graph.of(model)
    eye = {"head.weight": torch.eye(15, dtype=torch.float64), "norm.weight": model.norm.weight.double().detach()}
    state = {name: value.double() for name, value in model.state_dict().items()}
    expected = torch.linalg.matrix_norm(reads(model, eye, "logits") @ writes(model, graph, state, "m1"))
    assert np.isclose(scores_of(model, graph)[-1], float(expected), rtol=1e-6)


def test_what_it_cannot_do_is_refused():
    model = make_model(CONFIG)
    with pytest.raises(InputError, match="model of another shape"):
        magnitude(model, graph=Graph(2, 2), ablation=Ablation.zero(model))
    with pytest.raises(InputError, match=r"no weights[\s\S]*granularity='operator'[\s\S]*exact"):
        magnitude(model, graph=Graph(2, 3, "operator"), ablation=Ablation.zero(model))
