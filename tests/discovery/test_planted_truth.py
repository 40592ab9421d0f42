"""What every method is worth where the truth is known: planted circuits (vitsparse.evaluation.planted)."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from vitsparse.circuit import Circuit, EdgeScores
from vitsparse.discovery import METHODS
from vitsparse.evaluation.ablation import Ablation
from vitsparse.evaluation.planted import MIN_EFFECT, Planted, and_gate, or_gate, random_planted
from vitsparse.evaluation.roc import roc

CASES = [("head", 1, 0), ("head", 2, 1), ("qkv", 1, 2), ("qkv", 2, 3), ("layer", 1, 4), ("block", 2, 5)]
SETTINGS = {"exact": {"metric": "kl"}, "eap_ig": {"metric": "kl"}}
GATE_EDGES = ("input->a0.h0", "input->a0.h1", "a0.h0->m0", "a0.h1->m0")


@functools.cache
def planted_case(granularity: str, groups: int, seed: int) -> Planted:
    return random_planted(seed, granularity=granularity, mlp_groups=groups)


def ablation_of(planted: Planted, kind: str) -> Ablation:
    if kind == "zero":
        return Ablation.zero(planted.model, planted.graph)
    return Ablation.mean(planted.model, planted.batches(), planted.graph)


def run(name: str, planted: Planted, kind: str, **settings: object) -> EdgeScores | Circuit:
    return METHODS[name](planted.model, planted.batches(), graph=planted.graph, ablation=ablation_of(planted, kind),
                         **SETTINGS.get(name, {}) | settings)


def sparsity_of(planted: Planted) -> float:
    """The share of the edges that are not true."""
    return 1 - planted.circuit.num_kept / planted.graph.num_edges


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("case", CASES)
def test_acdc_finds_exactly_the_true_edges(case, kind):
    planted = planted_case(*case)
    assert run("acdc", planted, kind, threshold=MIN_EFFECT / 2) == planted.circuit


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("case", CASES)
def test_exact_scores_are_above_zero_exactly_for_the_true_edges(case, kind):
    planted = planted_case(*case)
    scores = run("exact", planted, kind)
    assert roc(scores, planted.circuit).auc == 1
    assert scores.threshold(MIN_EFFECT / 2) == planted.circuit


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["eap_ig", "eap", "relp"])
def test_gradient_methods_rank_the_true_edges_first(name, case):
    planted = planted_case(*case)
    assert roc(run(name, planted, "mean"), planted.circuit).auc >= 0.95


@pytest.mark.parametrize("case", CASES[::2])
def test_learned_masks_rank_the_true_edges_first(case):
    planted = planted_case(*case)
    scores = run("edge_pruning", planted, "mean", steps=100, sparsity=sparsity_of(planted))
    assert roc(scores, planted.circuit).auc >= 0.95


@pytest.mark.parametrize("name", ["exact", "eap", "eap_ig", "relp", "edge_pruning"])
def test_an_and_gate_is_found(name):
    planted = and_gate()
    learned = {"steps": 100, "sparsity": sparsity_of(planted)} if name == "edge_pruning" else {}
    scores = run(name, planted, "zero", **learned)
    assert roc(scores, planted.circuit).auc == 1
    assert scores.top_k(5) == planted.circuit


def test_acdc_finds_an_and_gate():
    assert run("acdc", and_gate(), "zero", threshold=1e-2) == and_gate().circuit


@pytest.mark.parametrize("name", ["exact", "eap", "relp"])
def test_neither_single_cuts_nor_gradients_at_the_model_see_an_or_gate(name):
    """Each input alone can go, and the gate is saturated: all edges into it score 0, the one out of it does not."""
    planted = or_gate()
    scores = run(name, planted, "zero", metric="ce")
    into_the_gate = [scores.values[planted.graph.edge_index(edge)] for edge in GATE_EDGES]
    assert into_the_gate == pytest.approx([0] * 4, abs=1e-9)
    assert scores.values[planted.graph.edge_index("m0->logits")] > 1e-3


def test_acdc_keeps_one_road_of_an_or_gate():
    """Either alone can go, not both: the later one in canonical order is tried first and goes."""
    circuit = run("acdc", or_gate(), "zero", threshold=1e-2)
    assert set(circuit.kept) == {"input->a0.h0", "a0.h0->m0", "m0->logits"}


def test_random_scores_know_nothing():
    planted = planted_case(*CASES[0])
    areas = [roc(run("random", planted, "zero", seed=seed), planted.circuit).auc for seed in range(40)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.07)
