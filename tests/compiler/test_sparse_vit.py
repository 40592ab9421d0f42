"""SparseViT against the edge-wise forward on every backend, and as a module: gradients, copies, states, tracing."""

from __future__ import annotations

import copy
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from tests.compiler.cases import BACKENDS, CONFIG, Case, case_of, cases, edgewise, needs_cpu
from tests.tolerances import BACKEND, FULL_CIRCUIT, ORACLE, error
from vitsparse.circuit import Circuit, Graph
from vitsparse.compiler import SparseViT, dense_flops
from vitsparse.errors import InputError
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import edgewise_forward


@settings(max_examples=100)
@given(cases())
def test_every_backend_equals_the_edgewise_forward(case):
    for backend in BACKENDS:
        sparse = case.sparse(backend)
        with torch.no_grad():
            out = sparse(case.images)
            assert error(out, case.exact) <= BACKEND, backend
            features = sparse.forward_features(case.images)
            assert error(sparse.forward_head(features), case.exact) <= BACKEND, backend
            assert error(sparse.forward_head(features), out) <= BACKEND, backend
        assert features.shape == (len(case.images), case.model.config.num_tokens, case.model.config.embed_dim)
        _check_state(sparse, case)


def _check_state(sparse: SparseViT, case: Case) -> None:
    """timm's keys, sliced, and constants; nothing else."""
    for key, value in sparse.state_dict().items():
        if not key.startswith("constants."):
            dense = case.state[key]
            assert value.ndim == dense.ndim
            assert all(small <= large for small, large in zip(value.shape, dense.shape, strict=True)), key
    assert all(not buffer.requires_grad for buffer in sparse.buffers())


@settings(max_examples=40)
@given(cases(kinds=("full",)))
def test_all_edges_are_the_dense_model(case):
    with torch.no_grad():
        dense, features = case.model(case.images), case.model.forward_features(case.images)
        for backend in BACKENDS:
            sparse = case.sparse(backend)
            assert error(sparse(case.images), dense) <= FULL_CIRCUIT["float32"], backend
            assert error(sparse.forward_features(case.images), features) <= FULL_CIRCUIT["float32"], backend
    state = {key: tuple(value.shape) for key, value in case.state.items()}
    assert {key: tuple(value.shape) for key, value in sparse.state_dict().items()} == state


@settings(max_examples=40)
@given(cases(dtype=torch.float64, kinds=("full", "dense")))
def test_gradients_are_those_of_the_edgewise_forward(case):
    """For every sliced parameter, except where the constants that were folded from it would change with it."""
    keep = case.circuit.keep
    blind = any(not keep[reader.edges].any() for reader in case.circuit.graph.reader_nodes)
    if case.circuit.constant or case.circuit.dead or blind:
        case = Case(case.model, Circuit.full(case.circuit.graph), case.ablation, case.images)
    sparse = case.sparse("torch").train()
    weights = torch.randn(case.exact.shape, dtype=torch.float64)
    (sparse(case.images) * weights).sum().backward()
    case.model.zero_grad()
    circuit = case.circuit
    dense = edgewise_forward(case.model, case.images, circuit.keep, graph=circuit.graph, ablation=case.ablation)
    (dense * weights).sum().backward()
    expected = dict(case.model.named_parameters())
    for key, parameter in sparse.named_parameters():
        assert parameter.shape == expected[key].shape
        scale = max(1e-6, float(expected[key].grad.abs().max()))
        assert float((parameter.grad - expected[key].grad).abs().max()) <= 1e-8 * scale, key


@settings(max_examples=40)
@given(cases(kinds=("sparse", "dead parts", "constant")))
def test_gradients_through_the_native_forward(case):
    gradients = {}
    for backend in BACKENDS:
        sparse, images = case.sparse(backend).eval(), case.images.clone().requires_grad_()
        out = sparse(images)
        assert error(out, case.exact) <= BACKEND
        out.square().sum().backward()
        found = {"images": images.grad, **{key: value.grad for key, value in sparse.named_parameters()}}
        gradients[backend] = {key: value for key, value in found.items() if value is not None}
    for backend in BACKENDS[1:]:
        assert gradients[backend].keys() == gradients["reference"].keys()
        for key, gradient in gradients[backend].items():
            assert torch.allclose(gradient, gradients["reference"][key], rtol=1e-3, atol=1e-3), (backend, key)


@needs_cpu
def test_second_derivatives_through_the_native_forward_are_refused():
    case = case_of()
    images = case.images.clone().requires_grad_()
    gradient, = torch.autograd.grad(case.sparse("cpu")(images).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_loss_falls_in_training():
    case = case_of()
    sparse, labels = case.sparse().train(), torch.tensor([0, 3, 1])
    optimizer = torch.optim.AdamW(sparse.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(sparse(case.images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes(backend):
    case = case_of(dtype=torch.float64)
    if backend == "cpu":
        with pytest.raises(ValueError, match=r"float32"):
            case.sparse(backend)
        sparse = case_of().sparse("cpu").double()
        with pytest.raises(ValueError, match=r"float32"):
            sparse(case.images)
        with pytest.raises(ValueError, match=r"float32"):
            case_of().sparse("cpu")(case.images)
        return
    with torch.no_grad():
        assert error(case.sparse(backend)(case.images), case.exact) <= ORACLE
        assert error(case.sparse("auto")(case.images), case.exact) <= ORACLE
        low = case.sparse(backend).bfloat16()(case.images.bfloat16())
        assert low.dtype == torch.bfloat16
        assert error(low, case.exact) < 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_in_any_layout(backend):
    case = case_of()
    sparse = case.sparse(backend)
    wide = torch.zeros(3, 3, 8, 16)
    wide[..., ::2] = case.images
    with torch.no_grad():
        expected = sparse(case.images)
        assert error(sparse(wide[..., ::2]), expected) <= BACKEND
        assert error(sparse(case.images.contiguous(memory_format=torch.channels_last)), expected) <= BACKEND
        assert error(sparse(case.images[1:2]), expected[1:2]) <= BACKEND
        assert sparse(case.images[:0]).shape == (0, 5)
        assert sparse.forward_features(case.images[:0]).shape == (0, 17, 24)


@needs_cpu
def test_threads_may_share_a_model():
    case = case_of()
    sparse = case.sparse("cpu")
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        for out in pool.map(lambda _: _quietly(sparse, case.images), range(40)):
            assert error(out, case.exact) <= BACKEND


@torch.no_grad()
def _quietly(sparse, images):
    return sparse(images)


@pytest.mark.parametrize("kind", ["constant", "empty"])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_constant_circuits_are_one_stored_vector(kind, pool):
    config = ViTConfig(**{**CONFIG.to_dict(), "global_pool": pool})
    case = case_of(kind, config=config)
    for backend in BACKENDS:
        sparse = case.sparse(backend)
        assert sparse.plan.steps == ()
        assert sparse.plan.flops == 0
        with torch.no_grad():
            out = sparse(case.images)
            assert error(out, case.exact) <= BACKEND
            out += 1  # what is stored is nobody else's
            assert error(sparse(case.images[:1]), case.exact[:1]) <= BACKEND
        sparse.train()(case.images).sum().backward()
        assert sparse.head.bias.grad.tolist() == [3.0] * 5


@pytest.mark.parametrize("kind", ["sparse", "constant"])
def test_compile_in_one_graph(kind):
    case = case_of(kind)
    sparse = case.sparse("auto")
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert error(compiled(case.images), case.exact) <= BACKEND
    if kind == "sparse":
        compiled.train()
        compiled(case.images).sum().backward()
        assert sparse.head.weight.grad.abs().sum() > 0


def test_a_compiled_model_follows_the_state_it_is_given():
    case = case_of()
    sparse = case.sparse("auto")
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        compiled(case.images)
        sparse.load_state_dict({key: value * 1.1 for key, value in sparse.state_dict().items()})
        assert error(compiled(case.images), sparse(case.images)) <= BACKEND


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_export_with_any_batch(pool):
    case = case_of(config=ViTConfig(**{**CONFIG.to_dict(), "global_pool": pool}))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(case.sparse("auto"), (case.images,), dynamic_shapes={"images": {0: batch}})
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if "vitsparse" in target]
    module = program.module()
    for count in (1, 3):
        assert error(module(case.images[:count]), case.exact[:count]) <= BACKEND


def test_distributed_data_parallel(tmp_path):
    case = case_of()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        sparse = case.sparse().train()
        parallel = torch.nn.parallel.DistributedDataParallel(sparse)
        out = parallel(case.images)
        out.sum().backward()
        assert error(out, case.exact) <= BACKEND
        assert all(parameter.grad is not None for parameter in sparse.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_it_looks_like_the_dense_model():
    case = case_of()
    sparse, dense = case.sparse(), case.model
    for name in ("num_classes", "embed_dim", "num_features", "depth", "num_heads", "global_pool", "num_prefix_tokens"):
        assert getattr(sparse, name) == getattr(dense, name), name
    assert len(sparse.blocks) == len(dense.blocks)
    assert sparse.no_weight_decay() == dense.no_weight_decay()
    assert sparse.get_classifier() is sparse.head
    assert not sparse.training
    assert not dense.training
    assert re.fullmatch(r"SparseViT\(Plan\(\d+ steps, .*\), Circuit\(.*\), backend='torch'\)", repr(sparse))
    assert "backend='auto' (" in repr(case.sparse(backend="auto"))
    assert sparse.plan.flops < dense_flops(CONFIG)
    x = sparse.forward_features(case.images)
    assert torch.equal(sparse.head(sparse.forward_head(x, pre_logits=True)), sparse.forward_head(x))
    with pytest.raises(ValueError, match="residual stream"):
        sparse.forward_intermediates(case.images)


def test_backend_may_be_changed_later():
    case = case_of()
    sparse = case.sparse("reference")
    with torch.no_grad():
        sparse(case.images)
        sparse.backend = "cuda"
        with pytest.raises(ValueError, match="cuda"):
            sparse(case.images)
        sparse.backend = "torch"
        assert error(sparse(case.images), case.exact) <= BACKEND


def test_node_ablation_is_cutting_all_out_edges():
    case = case_of("full", "zero", dtype=torch.float64, graph=Graph(2, 3))
    graph = case.circuit.graph
    keep = np.array([not name.startswith("a1.h1->") for name in graph.edge_names])
    cut = Case(case.model, Circuit(graph, keep), case.ablation, case.images)
    silent = copy.deepcopy(case.model)
    with torch.no_grad():
        silent.blocks[1].attn.proj.weight[:, 8:16] = 0
        assert error(cut.sparse()(case.images), silent(case.images)) <= ORACLE
    assert error(edgewise(silent, case), cut.exact) <= ORACLE


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_classifier_is_used_or_refused(backend):
    case = case_of()
    sparse = case.sparse(backend)
    tokens = sparse.forward_features(case.images)
    before = sparse(case.images)
    sparse.head = nn.Linear(sparse.embed_dim, sparse.num_classes)
    assert error(sparse(case.images), sparse.forward_head(tokens)) <= BACKEND
    for other in (nn.Linear(sparse.embed_dim, sparse.num_classes + 1), nn.Identity(), None):
        with pytest.raises(InputError, match=r"where: head\n[\s\S]*reset_classifier"):
            sparse.head = other
    assert sparse(case.images).shape == before.shape
