"""MLPs in sixteen groups, from the graph to a saved sparse model; the hidden width is no multiple of sixteen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiler.cases import BACKENDS, Case
from tests.strategies import KINDS, SEEDS, circuits, make_ablation, make_batches, make_circuit, make_images, make_model
from tests.tolerances import BACKEND, FULL_CIRCUIT, error
from vitsparse.circuit import GRANULARITIES, Circuit, Graph
from vitsparse.compiler import SparseViT, dense_flops
from vitsparse.compiler.steps import Linear
from vitsparse.discovery import acdc, eap
from vitsparse.evaluation.ablation import Ablation
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import group_bounds
from vitsparse.model.neurons import sort_neurons

CONFIG = ViTConfig(img_size=8, patch_size=2, in_chans=1, num_classes=5, embed_dim=24, depth=2, num_heads=3,
                   mlp_ratio=2.1, init_values=0.5)
HIDDEN = CONFIG.mlp_hidden
GRAPH = Graph(2, 3, mlp_groups=16)
TAKEN = (0, 3, 4, 5, 9, 15)
"""Groups without any edge out, in every layer."""


def test_the_groups_are_what_the_head_of_this_file_says():
    bounds = np.array(group_bounds(HIDDEN, 16))
    assert HIDDEN == 50
    assert set(np.diff(bounds)) == {3, 4}
    assert bounds[-1] == HIDDEN


def without(graph: Graph, groups: tuple[int, ...]) -> Circuit:
    gone = tuple(f"m{layer}.g{group}->" for layer in range(graph.depth) for group in groups)
    return Circuit(graph, np.array([not name.startswith(gone) for name in graph.edge_names]))


def check_backends(case: Case) -> None:
    for backend in BACKENDS:
        sparse = case.sparse(backend)
        with torch.no_grad():
            assert error(sparse(case.images), case.exact) <= BACKEND, backend
            assert error(sparse.forward_head(sparse.forward_features(case.images)), case.exact) <= BACKEND, backend


@settings(max_examples=30)
@given(data=st.data(), granularity=st.sampled_from(GRANULARITIES), groups=st.integers(4, 16),
       ablation=st.sampled_from(("zero", "mean")), pool=st.sampled_from(("token", "avg")), seed=SEEDS)
def test_every_backend_equals_the_edgewise_forward(data, granularity, groups, ablation, pool, seed):
    config = ViTConfig(**{**CONFIG.to_dict(), "global_pool": pool})
    model, graph = sort_neurons(make_model(config, seed)), Graph(2, 3, granularity, groups)
    circuit = data.draw(circuits(graph, kinds=KINDS))
    check_backends(Case(model, circuit, make_ablation(model, graph, ablation, seed), make_images(config, 2, seed)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_sorted_neurons_and_all_groups_are_the_dense_model(backend):
    model, images = make_model(CONFIG), make_images(CONFIG, 3)
    ordered = sort_neurons(model)
    assert not torch.equal(ordered.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)
    case = Case(ordered, Circuit.full(GRAPH), make_ablation(ordered, GRAPH, "zero"), images)
    with torch.no_grad():
        assert error(case.sparse(backend)(images), model(images)) <= FULL_CIRCUIT["float32"]


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_flops_and_parameters_fall_in_proportion(kind):
    model, images = make_model(CONFIG), make_images(CONFIG, 2)
    case = Case(model, without(GRAPH, TAKEN), make_ablation(model, GRAPH, kind), images)
    check_backends(case)
    sparse, full = case.sparse(), Case(model, Circuit.full(GRAPH), case.ablation, images).sparse()
    bounds = group_bounds(HIDDEN, 16)
    left = HIDDEN - sum(bounds[group + 1] - bounds[group] for group in TAKEN)
    for layer, block in enumerate(sparse.blocks):
        assert block.mlp.fc1.weight.shape == (left, 24)
        assert block.mlp.fc1.bias.shape == (left,)
        assert block.mlp.fc2.weight.shape == (24, left)
        assert mlp_flops(sparse, layer) * HIDDEN == mlp_flops(full, layer) * left
    saved = sum(mlp_flops(full, layer) - mlp_flops(sparse, layer) for layer in range(2))
    assert full.plan.flops - sparse.plan.flops == saved > 0
    assert full.plan.flops <= dense_flops(CONFIG)


def mlp_flops(sparse: SparseViT, layer: int) -> int:
    return sum(step.flops for step in sparse.plan.steps
               if isinstance(step, Linear) and step.weight.key.startswith(f"blocks.{layer}.mlp."))


def test_groups_that_all_readers_take_are_two_products_a_layer():
    """Sixteen groups cost sixteen products only where somebody tells them apart."""
    model = make_model(CONFIG)
    case = Case(model, without(GRAPH, TAKEN), make_ablation(model, GRAPH, "zero"), make_images(CONFIG, 2))
    keys = [step.weight.key for step in case.sparse().plan.steps if isinstance(step, Linear)]
    assert sorted(key for key in keys if ".mlp." in key) == sorted(
        f"blocks.{layer}.mlp.{name}.weight" for layer in range(2) for name in ("fc1", "fc2"))


@pytest.mark.parametrize("method", ["eap", "acdc"])
@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_from_discovery_to_a_saved_model(tmp_path, method, kind):
    """Graph, ablation, search, files, compiler, files again; some groups are found to be worth nothing."""
    model = sort_neurons(make_model(CONFIG, 2))
    with torch.no_grad():  # the last groups of the second layer say nothing
        model.blocks[1].mlp.fc2.weight[:, group_bounds(HIDDEN, 16)[12]:] = 0
    batches, graph = make_batches(CONFIG, (4, 3)), Graph.of(model, mlp_groups=16)
    ablation = Ablation.zero(model, graph) if kind == "zero" else Ablation.mean(model, batches, graph)
    if method == "eap":
        found = eap(model, batches, graph=graph, ablation=ablation, progress=False).top_k(graph.num_edges // 2)
    else:
        found = acdc(model, batches, graph=graph, ablation=ablation, threshold=1e-4, progress=False)
    kept = {name.split("->")[0] for name in found.kept}
    assert 0 < found.num_kept < graph.num_edges
    if kind == "mean":  # under zero ablation each still writes its share of the bias
        assert kept.isdisjoint({"m1.g12", "m1.g13", "m1.g14", "m1.g15"})

    found.save(tmp_path / "circuit.json")
    ablation.save(tmp_path / "ablation.safetensors")
    case = Case(model, Circuit.load(tmp_path / "circuit.json"), Ablation.load(tmp_path / "ablation.safetensors"),
                make_images(CONFIG, 3))
    assert case.circuit == found
    check_backends(case)
    case.sparse().save_pretrained(tmp_path / "sparse")
    for backend in BACKENDS:
        again = SparseViT.from_pretrained(tmp_path / "sparse", backend=backend)
        assert again.circuit.graph.mlp_groups == 16
        with torch.no_grad():
            assert error(again(case.images), case.exact) <= BACKEND, backend


def test_constant_groups_are_folded_with_their_share_of_the_bias():
    """The MLP of the first layer reads nothing but its ablation: all its groups are constants of the plan."""
    model = make_model(CONFIG)
    keep = np.array([not name.endswith("->m0") for name in GRAPH.edge_names])
    case = Case(model, Circuit(GRAPH, keep), make_ablation(model, GRAPH, "mean"), make_images(CONFIG, 2))
    assert {f"m0.g{group}" for group in range(16)} <= set(case.circuit.constant)
    sparse = case.sparse()
    assert "mlp" not in dict(sparse.blocks[0].named_children())
    check_backends(case)


def test_many_circuits_of_one_model_have_equal_logits_where_cuts_say_nothing():
    """Cutting what is zero anyway changes nothing: under zero ablation a group with no weights and no bias."""
    model = make_model(CONFIG)
    bounds = group_bounds(HIDDEN, 16)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc2.bias.zero_()
            for group in TAKEN:
                block.mlp.fc2.weight[:, bounds[group]: bounds[group + 1]] = 0
    ablation, images = make_ablation(model, GRAPH, "zero"), make_images(CONFIG, 2)
    for seed in range(3):
        rest = make_circuit(GRAPH, "dense", seed)
        for circuit in (rest, rest & without(GRAPH, TAKEN)):
            with torch.no_grad():
                found = Case(model, circuit, ablation, images).sparse()(images)
                assert error(found, Case(model, rest, ablation, images).exact) <= BACKEND
