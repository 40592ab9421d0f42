"""The baselines of the model benchmarks compute what they are compared with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.model.circuits import kill_nodes, live_nodes, named_circuits, with_all_edges
from benchmarks.model.masked import Masked
from benchmarks.model.removed import Heads, Removed, Units
from tests.strategies import make_images, make_model
from tests.tolerances import ORACLE, error
from vitsparse import Ablation, Circuit, InputError, edgewise_forward
from vitsparse.circuit import Graph
from vitsparse.model.config import ViTConfig

CONFIG = ViTConfig(img_size=8, patch_size=4, in_chans=1, num_classes=5, embed_dim=24, depth=3, num_heads=3)
SCALED = ViTConfig(**{**CONFIG.to_dict(), "init_values": 0.5, "qkv_bias": False})
NODES = {
    "scattered": {"a0.h1", "m0.g0", "m0.g3", "a2.h0", "m2.g1"},
    "a layer without heads, one without MLP": {"a0.h0", "a0.h1", "a0.h2", *(f"m1.g{k}" for k in range(4))},
    "nothing but the input": {f"{node}" for node in Graph(3, 3, mlp_groups=4).senders[1:]},
    "everything": set(),
}


def edgewise(model, circuit: Circuit, images):
    with torch.no_grad():
        return edgewise_forward(model, images, circuit.keep, graph=circuit.graph,
                                ablation=Ablation.zero(model, circuit.graph))


@pytest.mark.parametrize("config", [CONFIG, SCALED], ids=["plain", "LayerScale, no bias of QKV"])
@pytest.mark.parametrize("dead", NODES.values(), ids=NODES)
@torch.inference_mode()
def test_removed_nodes_compute_the_circuit_of_all_edges_between_the_others(config, dead):
    model, images = make_model(config, dtype=torch.float64), make_images(config, 2, dtype=torch.float64)
    graph = Graph(3, 3, mlp_groups=4)
    circuit = Circuit(graph, kill_nodes(graph, lambda sender: sender.name in dead))
    small = Removed(model, circuit)
    assert error(small(images), edgewise(model, circuit, images)) < ORACLE


def test_what_is_removed_is_not_computed():
    graph = Graph(3, 3, mlp_groups=4)
    circuit = Circuit(graph, kill_nodes(graph, lambda s: s.name in {"a0.h1", *(f"m1.g{k}" for k in range(4)), "m2.g0"}))
    parts = Removed(make_model(CONFIG), circuit).parts
    assert [type(part) for part in parts] == [Heads, Units, Heads, Heads, Units]
    assert [part.qkv.out_features for part in parts if isinstance(part, Heads)] == [48, 72, 72]
    assert [part.fc1.out_features for part in parts if isinstance(part, Units)] == [96, 72]


@pytest.mark.parametrize("config", [CONFIG, SCALED], ids=["plain", "LayerScale, no bias of QKV"])
@pytest.mark.parametrize("images", [1, 2])
@torch.inference_mode()
def test_masked_edges_compute_the_circuit(config, images):
    """Five images in chunks of one or two, twice: what a call leaves in the buffer must not reach the next one."""
    model, batch = make_model(config), make_images(config, 5)
    graph = Graph(3, 3)
    circuit = Circuit(graph, np.random.default_rng(0).random(graph.num_edges) < 0.5)
    masked = Masked(model, circuit, images)
    expected = edgewise(model, circuit, batch)
    masked(batch.flip(0))
    assert error(torch.cat([masked(batch[:4]), masked(batch[4:].expand(images, -1, -1, -1))[:1]]), expected) < 1e-5


def test_masked_edges_of_groups_are_refused():
    graph = Graph(3, 3, mlp_groups=2)
    with pytest.raises(InputError, match="whole heads and MLPs"):
        Masked(make_model(CONFIG), Circuit.full(graph), 1)


def test_circuits_have_the_nodes_they_are_named_for():
    circuits = named_circuits(12, 8)
    live = {name: live_nodes(circuit) for name, circuit in circuits.items()}
    assert np.sum(live["half"]) == 1 + 12 * 4 + 6
    assert np.sum(live["lean"]) == 1 + 12 * 7 + 12 * 2
    assert live["edges50"].all()
    assert abs(np.mean(circuits["edges50"].keep) - 0.5) < 0.01
    assert 0.66 < circuits["mixed"].prune().num_kept / circuits["half"].prune().num_kept < 0.74
    for name, nodes in (("mixed", "half"), ("found", "found_nodes")):
        assert (live[name] == live[nodes]).all()
    assert circuits["found_nodes"].num_kept > circuits["found"].prune().num_kept
    assert with_all_edges(circuits["third"]).prune() == circuits["third"].prune()
