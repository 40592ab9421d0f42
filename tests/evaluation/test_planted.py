"""Planted circuits: cutting a true edge changes the output, cutting any other edge changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitsparse.circuit import GRANULARITIES
from vitsparse.errors import InputError
from vitsparse.evaluation import planted as planted_module
from vitsparse.evaluation.ablation import Ablation
from vitsparse.evaluation.faithfulness import circuit_metrics
from vitsparse.evaluation.planted import MIN_EFFECT, Planted, and_gate, or_gate, random_planted

PLANTED = [("head", 1, 0), ("head", 2, 1), ("qkv", 1, 2), ("qkv", 2, 3), ("layer", 2, 4), ("block", 1, 5)]


def single_cuts(planted: Planted, ablation: Ablation) -> np.ndarray:
    """[E] KL of each single cut."""
    edges = range(planted.graph.num_edges)
    cuts = [np.arange(planted.graph.num_edges) != edge for edge in edges]
    return circuit_metrics(planted.model, planted.batches(), cuts, graph=planted.graph, ablation=ablation)[0]


def ablations(planted: Planted) -> tuple[Ablation, Ablation]:
    return Ablation.zero(planted.model), Ablation.mean(planted.model, planted.batches(), planted.graph)


@pytest.mark.parametrize(("granularity", "groups", "seed"), PLANTED)
def test_exactly_the_true_edges_matter(granularity, groups, seed):
    planted = random_planted(seed, granularity=granularity, mlp_groups=groups)
    true = planted.circuit.keep
    assert planted.circuit == planted.circuit.prune()
    for ablation in ablations(planted):
        effects = single_cuts(planted, ablation)
        assert effects[true].min() >= MIN_EFFECT
        assert np.abs(effects[~true]).max() < 1e-12
        together = circuit_metrics(planted.model, planted.batches(), [true], graph=planted.graph, ablation=ablation)
        assert abs(float(together[0, 0])) < 1e-12  # all others cut at once


def test_every_granularity_sees_the_same_wiring():
    """The first draw of this seed is good enough for each of them: the same model, seen more and more coarsely."""
    seen = {granularity: random_planted(1, granularity=granularity) for granularity in GRANULARITIES}
    first, *others = (planted.model(planted.images) for planted in seen.values())
    assert all(torch.equal(first, logits) for logits in others)
    edges = [planted.circuit.num_kept for planted in seen.values()]
    assert edges == sorted(edges, reverse=True)
    assert edges[0] > edges[-1]
    heads = {name.replace("<q>", "").replace("<k>", "").replace("<v>", "") for name in seen["qkv"].circuit.kept}
    assert heads == set(seen["head"].circuit.kept)


def test_a_circuit_attends_and_has_nonlinear_parts_and_distractors():
    planted = random_planted(3, heads=3)
    stack = planted.model(planted.images, intermediates=["blocks.0.mlp.out", "blocks.1.mlp.out"])[1]
    assert any(f"->m{layer}" in name for name in planted.circuit.kept for layer in range(2))
    dead = [name for name in planted.circuit.dead if name.startswith("m")]
    assert all(stack[f"blocks.{name[1:]}.mlp.out"].abs().max() > 0.1 for name in dead)
    assert planted.circuit.dead
    bent = planted.model(2 * planted.images) - 2 * planted.model(planted.images) + planted.model(0 * planted.images)
    assert bent.abs().max() > 0.1


def test_equal_seeds_give_equal_models_and_others_do_not():
    first, second, other = random_planted(7), random_planted(7), random_planted(8)
    assert torch.equal(first.model(first.images), second.model(second.images))
    assert first.circuit == second.circuit
    assert other.circuit != first.circuit


def test_batches_hold_every_image_once():
    planted = random_planted(0)
    batches = planted.batches(5)
    assert [len(images) for images, _ in batches] == [5, 5, 2]
    assert torch.equal(torch.cat([images for images, _ in batches]), planted.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), planted.labels)


@pytest.mark.parametrize("gate", [and_gate, or_gate])
def test_gates_compute_what_they_are_named_for(gate):
    planted = gate()
    bits = torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0)).double()
    truth = bits.prod(1) if gate is and_gate else bits.sum(1).clamp(max=1)
    logits = planted.model(bits[:, :, None, None].expand(-1, -1, 4, 4))
    assert torch.allclose(logits[:, 1], 6 * truth - 3, atol=1e-9)
    assert torch.equal(planted.model(planted.images).argmax(-1), planted.labels)


def test_no_single_cut_into_an_or_gate_matters_and_every_cut_into_an_and_gate_does():
    both, either = and_gate(), or_gate()
    assert single_cuts(both, Ablation.zero(both.model))[both.circuit.keep].min() > 1
    effects = single_cuts(either, Ablation.zero(either.model))
    assert np.flatnonzero(effects > 1e-12) == [either.graph.edge_index("m0->logits")]


def test_circuits_that_cannot_be_are_refused(monkeypatch):
    for arguments in ({"density": float("nan")}, {"granularity": "operator"}):
        with pytest.raises(InputError, match="of this kind"):
            random_planted(0, **arguments)
    monkeypatch.setattr(planted_module, "MIN_EFFECT", 50.0)
    monkeypatch.setattr(planted_module, "MAX_DRAWS", 3)
    with pytest.raises(InputError, match="whose every edge matters"):
        random_planted(0)
