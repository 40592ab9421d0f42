"""Circuits of operators: what is compiled equals the operator-level forward, for every single cut and for sets."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.compiler.cases import BACKENDS, Case
from tests.strategies import SEEDS, configs, make_batches, make_images, make_model
from tests.tolerances import BACKEND, ORACLE, error
from vitsparse.circuit import Circuit, Graph
from vitsparse.circuit.operator import block_edge
from vitsparse.compiler import SparseViT, sparsify
from vitsparse.compiler.steps import ApplyPattern, Attention
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import edgewise_forward
from vitsparse.model.vit import ViT

CONFIG = ViTConfig(img_size=6, patch_size=2, in_chans=1, num_classes=4, embed_dim=16, depth=2, num_heads=2,
                   mlp_ratio=1.5, init_values=0.5)
GRAPH = Graph(2, 2, "operator")


@cache
def model_of(config: ViTConfig, seed: int, dtype: torch.dtype) -> tuple[ViT, Ablation]:
    model = make_model(config, seed, dtype)
    return model, Ablation.zero(model)


def case(keep: np.ndarray, dtype: torch.dtype = torch.float64, config: ViTConfig = CONFIG, seed: int = 3) -> Case:
    graph = Graph(config.depth, config.num_heads, "operator")
    model, ablation = model_of(config, seed, dtype)
    return Case(model, Circuit(graph, keep), ablation, make_images(config, 2, seed, dtype))


def cutting(*edges: str, **options) -> Case:
    keep = np.ones(GRAPH.num_edges, dtype=bool)
    keep[[GRAPH.edge_index(edge) for edge in edges]] = False
    return case(keep, **options)


FULL = case(np.ones(GRAPH.num_edges, dtype=bool))


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative to the largest logit, or absolute where the logits are zeros."""
    return error(found, expected) if expected.any() else float(found.abs().max())


@torch.no_grad()
def test_every_single_cut():
    for edge, name in enumerate(GRAPH.edge_names):
        keep = np.arange(GRAPH.num_edges) != edge
        wide, narrow = case(keep), case(keep, torch.float32)
        assert difference(wide.sparse("reference")(wide.images), wide.exact) <= ORACLE, name
        sparse = narrow.sparse()
        for sparse.backend in BACKENDS[1:]:
            assert difference(sparse(narrow.images), narrow.exact) <= BACKEND, (name, sparse.backend)


@torch.no_grad()
def test_every_single_cut_of_the_ends_of_a_model_that_takes_the_mean_patch():
    config = ViTConfig(**{**CONFIG.to_dict(), "global_pool": "avg", "init_values": None})
    for edge in (*range(12), *range(GRAPH.num_edges - 6, GRAPH.num_edges)):
        cut = case(np.arange(GRAPH.num_edges) != edge, config=config)
        assert difference(cut.sparse("reference")(cut.images), cut.exact) <= ORACLE, GRAPH.edge_name(edge)


@settings(max_examples=40)
@given(config=configs(), share=st.sampled_from((0.01, 0.03, 0.1, 0.3)), seed=SEEDS)
def test_sets_of_cuts(config, share, seed):
    edges = Graph(config.depth, config.num_heads, "operator").num_edges
    keep = np.random.default_rng(seed).random(edges) >= share
    with torch.no_grad():
        wide, narrow = case(keep, torch.float64, config, seed), case(keep, torch.float32, config, seed)
        assert difference(wide.sparse("reference")(wide.images), wide.exact) <= ORACLE
        sparse = narrow.sparse()
        for sparse.backend in BACKENDS[1:]:
            assert difference(sparse(narrow.images), narrow.exact) <= BACKEND


@settings(max_examples=30)
@given(share=st.sampled_from((0.03, 0.1)), seed=SEEDS)
def test_states_are_what_the_forward_shows(share, seed):
    """What an attention mixes or an MLP holds changes with the image iff it is neither dead nor constant; what a dead
    sub-block holds changes no logit."""
    drawn = case(np.random.default_rng(seed).random(GRAPH.num_edges) >= share)
    circuit, seen = drawn.circuit, {}
    model = make_model(CONFIG, 3, torch.float64)
    for layer, block in enumerate(model.blocks):
        block.attn.proj.register_forward_hook(lambda _, given, out, name=f"a{layer}": seen.update({name: given[0]}))
        block.mlp.fc2.register_forward_hook(lambda _, given, out, name=f"m{layer}": seen.update({name: given[0]}))
    with torch.no_grad():
        logits = _forward(model, drawn)
        for name, value in seen.items():
            varies = (value[0] - value[1]).abs().max() > 1e-9
            assert name in circuit.dead or varies == (name not in circuit.constant), name
            if name in circuit.uniform:
                assert (value - value[:, :1]).abs().max() <= ORACLE, name
        for name in set(circuit.dead) - {"input"}:
            block = model.blocks[int(name[1])]
            parts = [block.attn.qkv.weight, block.attn.proj.weight] if name[0] == "a" else list(block.mlp.parameters())
            for part in parts:
                part.mul_(-1.7)
        assert (_forward(model, drawn) - logits).abs().max() <= ORACLE


def _forward(model: ViT, drawn: Case) -> Tensor:
    return edgewise_forward(model, drawn.images, drawn.circuit.keep, graph=GRAPH, ablation=drawn.ablation)


def test_uniform_attention_needs_no_queries_and_keys():
    circuit = cutting("b0.transpose->b0.matmul")
    plan = circuit.sparse().plan
    patterns = [step for step in plan.steps if isinstance(step, ApplyPattern)]
    assert [step.out.name for step in patterns] == ["z.a0"]
    assert [step.out.name for step in plan.steps if isinstance(step, Attention)] == ["z.a1"]
    assert (plan.constants[patterns[0].pattern] - 1 / CONFIG.num_tokens).abs().max() <= ORACLE
    assert plan.parameters["blocks.0.attn.qkv.weight"][0] == ((2 * CONFIG.embed_dim, 3 * CONFIG.embed_dim),)
    assert circuit.circuit.uniform == ("a0",)


@pytest.mark.parametrize(("edge", "gone", "left"), [
    ("b0.proj_drop->b0.drop_path", ("blocks.0.attn", "blocks.0.norm1"), "blocks.0.mlp.fc1.weight"),
    ("b0.reshape_1->b0.proj", ("blocks.0.attn.qkv", "blocks.0.attn.proj.weight"), "blocks.0.attn.proj.bias"),
    ("b0.in->b0.norm1", ("blocks.0.attn.qkv", "blocks.0.attn.proj.weight"), "blocks.0.attn.proj.bias"),
    ("b0.drop2->b0.drop_path_1", ("blocks.0.mlp", "blocks.0.norm2"), "blocks.0.attn.qkv.weight"),
    ("b0.act->b0.drop1", ("blocks.0.mlp", "blocks.0.norm2"), "blocks.0.attn.qkv.weight"),
    ("expand->cat", ("cls_token",), "pos_embed"), ("pos_embed->add", ("pos_embed",), "cls_token"),
])
def test_what_is_left_of_the_program(edge, gone, left):
    """A dead or constant sub-block has neither steps nor weights, so that training cannot bring a cut value back."""
    sparse = cutting(edge).sparse()
    names = [name for name, _ in sparse.named_parameters()]
    assert left in names
    assert not [name for name in names if name.startswith(gone)]
    saved = FULL.sparse().plan.flops - sparse.plan.flops
    tokens, width, hidden = CONFIG.num_tokens, CONFIG.embed_dim, CONFIG.mlp_hidden
    part = {"attn": 8 * tokens * width**2 + 4 * tokens**2 * width, "mlp": 4 * tokens * width * hidden}
    assert saved == next((flops for name, flops in part.items() if f"blocks.0.{name}" in " ".join(gone)), 0)


def test_shapes_cost_and_change_nothing():
    sparse = case(~GRAPH.shape_only).sparse()
    assert str(sparse.plan) == str(FULL.sparse().plan)
    with torch.no_grad():
        assert torch.equal(sparse(FULL.images), FULL.sparse()(FULL.images))


def test_a_circuit_that_sees_no_image_is_one_vector():
    for edge in ("x->proj", "proj->flatten", "cat->add", "b1.add_1->norm", "norm->getitem", "getitem->head"):
        sparse = cutting(edge).sparse()
        assert (sparse.plan.steps, sparse.plan.flops) == ((), 0)
    assert not cutting("head->output").sparse()(FULL.images).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_files(backend, tmp_path):
    drawn = cutting("b0.k->b0.transpose", "b1.fc1->b1.act", "expand->cat", "b1.in->b1.add", dtype=torch.float32)
    sparse = drawn.sparse(backend)
    sparse.save_pretrained(tmp_path)
    loaded = SparseViT.from_pretrained(tmp_path)
    assert loaded.circuit == drawn.circuit
    assert str(loaded.plan) == str(sparse.plan)
    assert "embed(images, no class_token)" in str(loaded.plan)
    with torch.no_grad():
        assert torch.equal(loaded(drawn.images), sparse(drawn.images))
        assert error(loaded.forward_head(loaded.forward_features(drawn.images)), drawn.exact) <= BACKEND


@settings(max_examples=25)
@given(cuts=st.lists(st.sampled_from(GRAPH.edge_names), max_size=4), seed=SEEDS)
def test_back_to_a_plain_vit(cuts, seed):
    """Cuts inside the sub-blocks have a plain twin, those on the residual stream have none."""
    drawn = cutting(*cuts, seed=seed % 5)
    sparse = drawn.sparse()
    skips = {block_edge(layer, edge) for layer in (0, 1) for edge in ("in->add", "add->add_1")} & set(cuts)
    if skips or not sparse.plan.steps:
        with pytest.raises(InputError, match=f"{len(skips)} cut edges" if skips else "do not depend on the image"):
            sparse.to_dense()
    else:
        with torch.no_grad():
            assert error(sparse.to_dense()(drawn.images), drawn.exact) <= ORACLE


def test_only_zeros_can_stand_in():
    mean = Ablation.mean(FULL.model, make_batches(CONFIG, dtype=torch.float64))
    with pytest.raises(InputError, match=r"feeds zeros[\s\S]*found: mean"):
        sparsify(FULL.model, FULL.circuit, ablation=mean)


def test_training_goes_on_from_a_circuit_of_operators():
    drawn = cutting("b0.q->b0.matmul", "b0.add->b0.norm2", "pos_embed->add", dtype=torch.float32)
    sparse = drawn.sparse().train()
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1)
    before = sparse(drawn.images).detach()
    sparse(drawn.images).square().sum().backward()
    optimizer.step()
    assert not torch.equal(sparse(drawn.images), before)
    assert all(parameter.grad is not None for parameter in sparse.parameters())
