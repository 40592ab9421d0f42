"""Training through the plan: gradients are the edge-wise model's, and what fine-tuning made outlives a file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.compiler.cases import BACKENDS, CONFIG, Case, case_of, cases, edgewise
from tests.tolerances import BACKEND, LOW_PRECISION_RATIO, ORACLE, error
from vitsparse.circuit import Circuit, Graph
from vitsparse.circuit.liveness import depends_on_input, reaches_logits
from vitsparse.compiler import SparseViT
from vitsparse.compiler.execute import take
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import edgewise_forward
from vitsparse.model.vit import ViT

GRADIENT = {torch.float32: 1e-5, torch.float64: ORACLE}
"""Against the edge-wise model in float64, relative to the largest gradient in a parameter; where the edge-wise model in
the same precision is itself further off, twice as far."""
MODES = [(backend, training) for backend in BACKENDS for training in (False, True)]
LIVE = ("full", "dense", "sparse", "dead parts")


def without_constant_inputs(circuit: Circuit) -> Circuit:
    """The circuit with the edge from ``input`` into every reader of a live node that sees nothing which varies.

    What is folded is frozen; with nothing folded, all gradients must be those of the edge-wise model.
    """
    keep = circuit.keep.copy()
    graph = circuit.graph
    for reader in graph.reader_nodes:
        varies = depends_on_input(graph, keep)[: reader.fan_in]
        keep[reader.first_edge] |= not (keep[reader.edges] & varies).any()
    return Circuit(graph, keep)


def expected_gradients(case: Case, weights: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of the edge-wise model in ``dtype``, for every parameter of the dense model."""
    model = ViT(**case.model.config.to_dict(), dtype=dtype).eval()
    model.load_state_dict({key: value.to(dtype) for key, value in case.state.items()})
    out = edgewise_forward(model, case.images.to(dtype), case.circuit.keep, graph=case.circuit.graph,
                           ablation=case.ablation)
    (out * weights.to(dtype)).sum().backward()
    return {key: torch.zeros_like(value) if value.grad is None else value.grad
            for key, value in model.named_parameters()}


def found_gradients(sparse: SparseViT, images: Tensor, weights: Tensor) -> dict[str, Tensor | None]:
    sparse.zero_grad()
    (sparse(images) * weights).sum().backward()
    return {key: value.grad for key, value in sparse.named_parameters()}


def check_gradients(case: Case) -> None:
    """Every live weight, in every way that a model can be trained."""
    dtype = case.images.dtype
    weights = torch.randn(case.exact.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact, plain = (expected_gradients(case, weights, each) for each in (torch.float64, dtype))
    # of a parameter whose gradient is zero (a bias in front of a softmax) only rounding is left
    floor = 1e-6 * max(float(value.abs().max()) for value in exact.values())
    for backend, training in MODES if dtype == torch.float32 else MODES[:4]:
        sparse = case.sparse(backend).train(training)
        found, kept = found_gradients(sparse, case.images, weights.to(dtype)), sparse._front.parameters
        assert found.keys() == kept.keys()
        for key, gradient in found.items():
            assert gradient is not None, (backend, training, key)
            part = exact[key]
            for dim, ranges in enumerate(kept[key]):
                part = take(part, dim, ranges)
            allowed = max(GRADIENT[dtype] * max(floor, float(part.abs().max())),
                          LOW_PRECISION_RATIO * float((plain[key] - exact[key]).abs().max()))
            assert float((gradient - part).abs().max()) <= allowed, (backend, training, key)


@settings(max_examples=40)
@given(cases(dtype=torch.float64, kinds=LIVE))
def test_gradients_in_float64(case):
    check_gradients(Case(case.model, without_constant_inputs(case.circuit), case.ablation, case.images))


@settings(max_examples=40)
@given(cases(kinds=LIVE))
def test_gradients_in_float32(case):
    check_gradients(Case(case.model, without_constant_inputs(case.circuit), case.ablation, case.images))


@pytest.mark.parametrize("granularity", ["qkv", "head", "layer", "block"])
@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_gradients_for_every_granularity_and_pool(granularity, pool, ablation):
    """With LayerScale and MLP groups; what is drawn above may miss a combination."""
    config = ViTConfig(**{**CONFIG.to_dict(), "global_pool": pool})
    case = case_of("dense", ablation, config=config, graph=Graph(2, 3, granularity, 3))
    check_gradients(Case(case.model, without_constant_inputs(case.circuit), case.ablation, case.images))


@pytest.mark.parametrize(("backend", "training"), MODES)
def test_dead_parameters_do_not_exist_and_live_ones_are_trained(backend, training):
    """Of a layer without live heads and of one without its MLP nothing is left; the others all move in a step."""
    graph = Graph(2, 3, mlp_groups=2)
    gone = ("a0.h0->", "a0.h1->", "a0.h2->", "m1.g0->", "m1.g1->")
    keep = np.array([not name.startswith(gone) for name in graph.edge_names])
    case = case_of("full", graph=graph)
    sparse = Case(case.model, Circuit(graph, keep), case.ablation, case.images).sparse(backend).train(training)
    before = {key: value.detach().clone() for key, value in sparse.named_parameters()}
    assert not any(key.startswith(("blocks.0.attn.qkv", "blocks.0.attn.proj.weight", "blocks.0.norm1", "blocks.1.mlp",
                                   "blocks.1.norm2", "blocks.1.ls2")) for key in before)
    assert "blocks.0.attn.proj.bias" in before  # not an edge: every reader behind it gets it
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1)
    sparse(case.images).square().sum().backward()
    optimizer.step()
    assert [key for key, value in sparse.named_parameters() if torch.equal(value, before[key])] == []


def fine_tuned(case: Case, backend: str, *, training: bool, steps: int = 3) -> SparseViT:
    sparse = case.sparse(backend).train(training)
    optimizer = torch.optim.AdamW(sparse.parameters(), lr=1e-2, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(sparse(case.images), torch.tensor([0, 3, 1])).backward()
        optimizer.step()
    return sparse.eval()


@pytest.mark.parametrize("kind", ["sparse", "dense", "constant"])
@pytest.mark.parametrize(("backend", "training"), MODES)
def test_a_fine_tuned_model_outlives_its_file(tmp_path, kind, backend, training):
    """On its own backend bit by bit, on every other within rounding, and it can be trained on as if never saved."""
    case = case_of(kind)
    sparse = fine_tuned(case, backend, training=training)
    with torch.no_grad():
        out = sparse(case.images)
        assert error(out, case.exact) > 1e-3
    sparse.save_pretrained(tmp_path)
    for other in BACKENDS:
        again = SparseViT.from_pretrained(tmp_path, backend=other)
        with torch.no_grad():
            loaded = again(case.images)
            assert error(loaded, out) <= BACKEND, other
            assert other != backend or backend != "cpu" or torch.equal(loaded, out)
            assert error(again.forward_head(again.forward_features(case.images)), out) <= BACKEND
    further = fine_tune_further(SparseViT.from_pretrained(tmp_path), case)
    assert error(further, fine_tune_further(sparse, case)) <= BACKEND


def fine_tune_further(sparse: SparseViT, case: Case) -> Tensor:
    """The logits after one more step."""
    sparse.train()
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.05)
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(sparse(case.images), torch.tensor([0, 3, 1])).backward()
    optimizer.step()
    with torch.no_grad():
        return sparse.eval()(case.images)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fine_tuned_model_is_the_edgewise_one_with_its_weights(backend):
    """Nothing that was packed or folded before the training is left: a circuit with nothing folded, its weights put
    back into the dense model."""
    case = case_of("dense")
    case = Case(case.model, without_constant_inputs(case.circuit), case.ablation, case.images)
    assert reaches_logits(case.circuit.graph, case.circuit.keep).all()
    sparse = fine_tuned(case, backend, training=False)
    trained = ViT(**case.model.config.to_dict()).eval()
    trained.load_state_dict({key: value for key, value in sparse.state_dict().items() if "constants." not in key})
    with torch.no_grad():
        assert error(sparse(case.images), edgewise(trained, case)) <= BACKEND
