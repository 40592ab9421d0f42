"""The edge-wise forward is the definition of a circuit: it equals the formula, and the dense model where it must."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.strategies import SEEDS, circuits, configs, graphs_of, make_ablation, make_batches, make_images, make_model
from tests.tolerances import FULL_CIRCUIT, ORACLE, error
from vitsparse.circuit import GRANULARITIES, Circuit, Graph
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import Edgewise, ablation_constants, edgewise_forward, group_bounds, sender_outputs

KIND = st.sampled_from(("zero", "mean"))
SMALL = ViTConfig(img_size=4, patch_size=2, in_chans=1, num_classes=3, embed_dim=12, depth=2, num_heads=3)


@settings(max_examples=60)
@given(data=st.data(), config=configs(), seed=SEEDS, kind=KIND, fractional=st.booleans())
def test_equals_the_formula(data, config, seed, kind, fractional):
    graph = data.draw(graphs_of(config))
    model = make_model(config, seed, torch.float64)
    ablation = make_ablation(model, graph, kind, seed)
    keep = data.draw(circuits(graph)).keep.astype(np.float64)
    if fractional:
        keep = np.random.default_rng(seed).uniform(-0.5, 1.5, graph.num_edges)
    images = make_images(config, 2, seed, torch.float64)

    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    ablated = dict(zip(graph.senders, ablation.stacked(graph).double().numpy(), strict=True))
    edges = dict(zip(graph.edge_names, keep, strict=True))
    expected = [oracle.logits(weights, config, image, edges, ablated, graph.granularity) for image in images.numpy()]

    actual = edgewise_forward(model, images, keep, graph=graph, ablation=ablation)
    assert error(actual, torch.tensor(np.array(expected))) <= ORACLE


@settings(max_examples=30)
@given(data=st.data(), config=configs(), seed=SEEDS, dtype=st.sampled_from((torch.float32, torch.float64)))
def test_all_edges_kept_is_the_dense_model(data, config, seed, dtype):
    graph = data.draw(graphs_of(config))
    model, images = make_model(config, seed, dtype), make_images(config, 3, seed, dtype)
    ablation = make_ablation(model, graph, "mean")
    actual = edgewise_forward(model, images, torch.ones(graph.num_edges), graph=graph, ablation=ablation)
    assert actual.dtype == dtype
    assert error(actual, model(images)) <= FULL_CIRCUIT[str(dtype).removeprefix("torch.")]


@settings(max_examples=15)
@given(data=st.data(), config=configs(), seed=SEEDS)
def test_no_edge_kept_is_the_dense_model_on_the_corrupted_images(data, config, seed):
    """Under a counterfactual ablation every reader then sees the run on the corrupted images."""
    graph = data.draw(graphs_of(config))
    model, images = make_model(config, seed, torch.float64), make_images(config, 3, seed, torch.float64)
    labels, nothing = torch.tensor([0, 1, 2]), torch.zeros(graph.num_edges)
    ablation = Ablation.counterfactual(model, lambda images, labels: images.flip(0) + labels[:, None, None, None])
    actual = edgewise_forward(model, images, nothing, graph=graph, ablation=ablation, labels=labels)
    assert error(actual, model(images.flip(0) + labels[:, None, None, None])) <= FULL_CIRCUIT["float64"]


@settings(max_examples=15)
@given(data=st.data(), config=configs(), seed=SEEDS)
def test_cutting_all_edges_of_a_sender_is_ablating_the_node(data, config, seed):
    """Zero ablation of a node: the dense model with that node's output weights set to zero."""
    graph = Graph(config.depth, config.num_heads, data.draw(st.sampled_from(("qkv", "head", "layer"))))
    model, images = make_model(config, seed, torch.float64), make_images(config, 3, seed, torch.float64)
    layer, node = data.draw(st.integers(0, config.depth - 1)), data.draw(st.integers(0, config.num_heads))
    name = f"a{layer}.h{node}" if node < config.num_heads else f"m{layer}"
    keep = [not edge.startswith(f"{name}->") for edge in graph.edge_names]
    cut = edgewise_forward(model, images, keep, graph=graph, ablation=Ablation.zero(model))
    with torch.no_grad():
        if node < config.num_heads:
            model.blocks[layer].attn.proj.weight[:, node * config.head_dim: (node + 1) * config.head_dim] = 0
        else:
            model.blocks[layer].mlp.fc2.weight.zero_()
            model.blocks[layer].mlp.fc2.bias.zero_()
    assert error(cut, model(images)) <= FULL_CIRCUIT["float64"]


@pytest.mark.parametrize("granularity", ["qkv", "head", "layer"])
def test_permuting_heads_commutes(granularity):
    """A model with its heads in another order is the same circuit under other names."""
    graph, order = Graph(2, 3, granularity), torch.tensor([2, 0, 1])
    model, images = make_model(SMALL, 1, torch.float64), make_images(SMALL, 3, 2, torch.float64)
    keep = torch.rand(graph.num_edges, dtype=torch.float64)
    permuted = make_model(SMALL, 1, torch.float64)
    with torch.no_grad():
        for block in permuted.blocks:
            qkv, proj = block.attn.qkv, block.attn.proj
            qkv.weight.copy_(qkv.weight.view(3, 3, 4, 12)[:, order].reshape(36, 12))
            qkv.bias.copy_(qkv.bias.view(3, 3, 4)[:, order].reshape(36))
            proj.weight.copy_(proj.weight.view(12, 3, 4)[:, order].reshape(12, 12))
    # Head h of the permuted model is head order[h] of the first, so its edges have those names.
    new_name = {f"h{int(old)}": f"h{new}" for new, old in enumerate(order)}
    renamed = [_rename(edge, new_name) for edge in graph.edge_names]
    moved = torch.empty_like(keep)
    moved[[graph.edge_index(name) for name in renamed]] = keep
    before = edgewise_forward(model, images, keep, graph=graph, ablation=Ablation.zero(model))
    after = edgewise_forward(permuted, images, moved, graph=graph, ablation=Ablation.zero(model))
    assert sorted(renamed) == sorted(graph.edge_names)
    assert error(after, before) <= ORACLE


def _rename(edge: str, names: dict[str, str]) -> str:
    parts = edge.replace("->", " -> ").replace(".", " . ").replace("<", " <").split(" ")
    return "".join(names.get(part, part) for part in parts)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradient_in_keep(granularity):
    graph = Graph(1, 2, granularity, mlp_groups=2)
    config = dataclasses.replace(SMALL, embed_dim=6, depth=1, num_heads=2, mlp_ratio=1)
    model, images = make_model(config, 3, torch.float64), make_images(config, 2, 4, torch.float64)
    ablation = make_ablation(model, graph, "mean")
    keep = torch.rand(graph.num_edges, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: edgewise_forward(model, images, k, graph=graph, ablation=ablation), keep)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("gradients", [False, True])
def test_resuming_from_any_stage_changes_no_bit(granularity, gradients):
    graph = Graph.of(make_model(SMALL), granularity=granularity, mlp_groups=2)
    model, images = make_model(SMALL, 5), make_images(SMALL, 3, 6)
    constants = ablation_constants(model, images, graph=graph, ablation=make_ablation(model, graph, "mean"))
    keep = torch.rand(graph.num_edges)
    with torch.set_grad_enabled(gradients):
        edgewise = Edgewise(model, graph, constants)
        expected = edgewise.run(images, keep)
        stack = edgewise.start(images)
        edgewise.resume(stack, 0, keep)
        for stage in reversed(range(edgewise.num_stages)):
            first = next(reader.first_edge for reader in graph.reader_nodes if edgewise.stage_of(reader) == stage)
            other = torch.cat([keep[:first], 1 - keep[first:]])
            assert torch.equal(edgewise.resume(stack, stage, other), edgewise.run(images, other))
            assert torch.equal(edgewise.resume(stack, stage, keep), expected)


def test_sender_outputs_are_what_the_dense_model_adds_to_the_residual_stream():
    model, images = make_model(SMALL, 7, torch.float64), make_images(SMALL, 3, 8, torch.float64)
    graph = Graph.of(model, mlp_groups=3)
    outputs = dict(zip(graph.senders, sender_outputs(model, images, graph), strict=True))
    _, dense = model(images, intermediates=["embed", "blocks.1.attn.out", "blocks.1.mlp.out"])
    attention = sum(outputs[f"a1.h{h}"] for h in range(3)) + model.blocks[1].attn.proj.bias
    assert error(outputs["input"], dense["embed"]) <= ORACLE
    assert error(attention, dense["blocks.1.attn.out"]) <= ORACLE
    assert error(sum(outputs[f"m1.g{k}"] for k in range(3)), dense["blocks.1.mlp.out"]) <= ORACLE


@given(hidden=st.integers(1, 200), data=st.data())
def test_mlp_groups_are_contiguous_and_differ_by_at_most_one_unit(hidden, data):
    bounds = group_bounds(hidden, data.draw(st.integers(1, hidden)))
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, hidden)
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1


def test_what_does_not_fit_is_refused():
    model, images = make_model(SMALL), make_images(SMALL, 2)
    graph, zero = Graph.of(model), Ablation.zero(model)
    full = torch.ones(graph.num_edges)
    with pytest.raises(InputError, match="model of another shape"):
        edgewise_forward(model, images, full, graph=Graph(2, 4), ablation=zero)
    with pytest.raises(InputError, match="one value per edge"):
        edgewise_forward(model, images, full[1:], graph=graph, ablation=zero)
    for corrupt, found in ((lambda x, _: x[:1], r"\[1, "), (lambda x, _: None, "NoneType")):
        with pytest.raises(InputError, match=rf"an image for each image\n[\s\S]*found: {found}"):
            edgewise_forward(model, images, full, graph=graph, ablation=Ablation.counterfactual(model, corrupt))
    with pytest.raises(InputError, match=r"it is circuit\.keep"):
        edgewise_forward(model, images, Circuit.full(graph), graph=graph, ablation=zero)
    with pytest.raises(InputError, match=r"found: Linear[\s\S]*from_timm"):
        edgewise_forward(torch.nn.Linear(2, 2), images, full, graph=graph, ablation=zero)
    with pytest.raises(InputError, match="do not fit the model"):
        edgewise_forward(model, images[:, :, 1:], full, graph=graph, ablation=zero)
    with pytest.raises(InputError, match=r"mlp_groups|made with graph="):
        edgewise_forward(model, images, torch.ones(Graph(2, 3, mlp_groups=2).num_edges),
                         graph=Graph(2, 3, mlp_groups=2), ablation=make_ablation(model, graph, "mean"))
    wider = make_model(dataclasses.replace(SMALL, embed_dim=24))
    with pytest.raises(InputError, match="ablation is of a model of another shape"):
        edgewise_forward(model, images, full, graph=graph, ablation=Ablation.zero(wider))
    more_tokens = make_model(dataclasses.replace(SMALL, img_size=6))
    with pytest.raises(InputError, match="ablation is of a model of another shape"):
        edgewise_forward(model, images, full, graph=graph,
                         ablation=Ablation.mean(more_tokens, make_batches(more_tokens.config)))
