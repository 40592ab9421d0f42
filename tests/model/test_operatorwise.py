"""The operator-level forward, against a ViT in timm's style that torch.fx traced and that is run node by node."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from tests.strategies import SEEDS, configs, make_images, make_model
from tests.tolerances import FULL_CIRCUIT, ORACLE, error
from vitsparse.circuit import Graph
from vitsparse.errors import InputError
from vitsparse.evaluation.ablation import Ablation
from vitsparse.model.config import ViTConfig
from vitsparse.model.edgewise import Edgewise, edgewise_forward, sender_outputs
from vitsparse.model.vit import ViT

CONFIG = ViTConfig(img_size=6, patch_size=2, in_chans=1, num_classes=4, embed_dim=12, depth=2, num_heads=2,
                   mlp_ratio=1.5)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        pattern = self.attn_drop(((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1))
        return self.proj_drop(self.proj((pattern @ v).transpose(1, 2).reshape(b, n, c)))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.GELU()
        self.drop1, self.drop2 = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x):
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class _Block(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        width, eps = config.embed_dim, config.norm_eps
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn, self.mlp = _Attention(width, config.num_heads), _Mlp(width, config.mlp_hidden)
        self.drop_path = nn.Identity()

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class _ViT(nn.Module):
    def __init__(self, config: ViTConfig):
        super().__init__()
        width = config.embed_dim
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(config.in_chans, width, config.patch_size,
                                                            config.patch_size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_tokens, width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm, self.head = nn.LayerNorm(width, config.norm_eps), nn.Linear(width, config.num_classes)

    def forward(self, x):
        size = x.size(0)
        patches = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(size, -1, -1), patches), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Switched(fx.Interpreter):
    """Runs a traced model; what goes from a node into another is multiplied by the ``keep`` of that edge."""

    def __init__(self, traced: fx.GraphModule, keep: np.ndarray):
        super().__init__(traced)
        self.keep = dict(zip(edges(traced), keep.tolist(), strict=True))

    def map_nodes_to_values(self, args, n):
        def through(sender):
            value = self.env[sender]
            return value * self.keep[sender.name, n.name] if isinstance(value, Tensor) else value

        return fx.node.map_arg(args, through)


def edges(traced: fx.GraphModule) -> list[tuple[str, str]]:
    """(sender, reader) by the names of nodes: nodes in order of execution, each with its arguments in order."""
    return [(sender.name, node.name) for node in traced.graph.nodes for sender in node.all_input_nodes]


@cache
def traced(depth: int = 2) -> tuple[ViT, fx.GraphModule]:
    """A ViT in float64 and the traced one with the same weights."""
    config = ViTConfig(**{**CONFIG.to_dict(), "depth": depth})
    model = make_model(config, 5, torch.float64)
    twin = _ViT(config).double().eval()
    twin.load_state_dict(model.state_dict())
    return model, fx.symbolic_trace(twin)


def both(keep: np.ndarray) -> tuple[Tensor, Tensor]:
    model, twin = traced()
    images = make_images(CONFIG, 2, 1, torch.float64)
    graph = Graph.of(model, granularity="operator")
    with torch.no_grad():
        logits = edgewise_forward(model, images, keep, graph=graph, ablation=Ablation.zero(model))
        return logits, Switched(twin, keep).run(images)


def operator(end: str) -> str:
    """``b{l}.in`` is what the part before ended with."""
    if not end.endswith(".in"):
        return end
    return "add" if end == "b0.in" else f"b{int(end[1:-3]) - 1}.add_1"


@pytest.mark.parametrize("depth", [1, 2, 12])
def test_the_graph_is_what_fx_sees(depth):
    """Edge for edge, in order: our names and fx's are two names of the same nodes."""
    names = Graph(depth, 2, "operator").edge_names
    ours = [tuple(operator(end) for end in name.split("->")) for name in names]
    theirs = edges(traced(depth)[1])
    assert len(theirs) == 14 + 42 * depth
    pairs = {pair for mine, other in zip(ours, theirs, strict=True) for pair in zip(mine, other, strict=True)}
    assert len(pairs) == len({mine for mine, _ in pairs}) == len({other for _, other in pairs})


def test_every_single_cut():
    count = Graph.of(traced()[0], granularity="operator").num_edges
    for edge in range(count):
        found, expected = both(np.arange(count) != edge)
        assert (found - expected).abs().max() <= ORACLE, edge


@settings(max_examples=30)
@given(share=st.sampled_from((0.02, 0.1, 0.3)), floats=st.booleans(), seed=SEEDS)
def test_sets_of_cuts(share, floats, seed):
    rng = np.random.default_rng(seed)
    keep = rng.random(98) >= share
    found, expected = both(np.where(keep, 1.0, rng.random(98)) if floats else keep)
    assert (found - expected).abs().max() <= ORACLE * max(1.0, float(expected.abs().max()))


@settings(max_examples=15)
@given(config=configs(), seed=SEEDS)
def test_all_edges_are_the_dense_model(config, seed):
    """Of every shape: both pools, with and without LayerScale and qkv bias."""
    for dtype in (torch.float32, torch.float64):
        model, images = make_model(config, seed, dtype), make_images(config, 2, seed, dtype)
        graph = Graph.of(model, granularity="operator")
        with torch.no_grad():
            logits = edgewise_forward(model, images, [True] * graph.num_edges, graph=graph,
                                      ablation=Ablation.zero(model))
            assert error(logits, model(images)) <= FULL_CIRCUIT[str(dtype).removeprefix("torch.")]


def test_cuts_of_layer_scale_and_of_the_mean_patch():
    """Where a model has more operators than the list: LayerScale, and fc_norm behind the mean."""
    config = ViTConfig(**{**CONFIG.to_dict(), "init_values": 0.5, "global_pool": "avg"})
    model, images = make_model(config, 2, torch.float64), make_images(config, 2, 2, torch.float64)
    graph = Graph.of(model, granularity="operator")

    def logits(*cut: str) -> Tensor:
        keep = [name not in cut for name in graph.edge_names]
        return edgewise_forward(model, images, keep, graph=graph, ablation=Ablation.zero(model))

    with torch.no_grad():
        assert (logits("norm->getitem") - model.head(model.fc_norm.bias)).abs().max() <= ORACLE
        assert (logits("getitem->head") - model.head.bias).abs().max() <= ORACLE
        assert not logits("head->output").any()
        plain = cut = model.embed(images)
        for block in model.blocks:  # no attention: before its output bias is added, and behind
            cut = cut + block.ls1(block.attn.proj.bias)
            plain, cut = (x + block.ls2(block.mlp(block.norm2(x), {}, "")) for x in (plain, cut))
        before = logits("b0.reshape_1->b0.proj", "b1.reshape_1->b1.proj")
        assert (before - model.forward_head(cut)).abs().max() <= ORACLE
        for edge in ("proj->b{0}.proj_drop", "proj_drop->b{0}.drop_path", "drop_path->b{0}.add"):
            behind = logits(*(f"b{layer}." + edge.format(layer) for layer in (0, 1)))
            assert (behind - model.forward_head(plain)).abs().max() <= ORACLE
        assert error(before, behind) > 1e-3


def test_gradient_in_keep():
    model, _ = traced()
    graph = Graph.of(model, granularity="operator")
    images, ablation = make_images(CONFIG, 1, 0, torch.float64), Ablation.zero(model)
    keep = torch.full((graph.num_edges,), 0.9, dtype=torch.float64, requires_grad=True)

    def logits(keep: Tensor) -> Tensor:
        return edgewise_forward(model, images, keep, graph=graph, ablation=ablation)

    assert torch.autograd.gradcheck(logits, keep, fast_mode=True)
    logits(keep).square().sum().backward()
    assert (keep.grad != 0).tolist() == (~graph.shape_only).tolist()


def test_only_zeros_can_stand_in():
    model, images = make_model(CONFIG), make_images(CONFIG, 2)
    graph = Graph.of(model, granularity="operator")
    keep = np.ones(graph.num_edges, dtype=bool)
    others = [Ablation.mean(model, [(images, torch.zeros(2, dtype=torch.int64))]),
              Ablation.counterfactual(model, lambda images, labels: images.flip(0))]
    for ablation in others:
        with pytest.raises(InputError, match=rf"feeds zeros[\s\S]*found: {ablation.kind}"):
            edgewise_forward(model, images, keep, graph=graph, ablation=ablation)
    zero = Ablation.zero(model)
    with pytest.raises(InputError, match=r"expected: shape \(98,\)"):
        edgewise_forward(model, images, keep[:-1], graph=graph, ablation=zero)
    with pytest.raises(InputError, match="another shape"):
        edgewise_forward(model, images, keep, graph=Graph(3, 2, "operator"), ablation=zero)
    with pytest.raises(InputError, match=r"the images do not fit"):
        edgewise_forward(model, images[:, :, 1:], keep, graph=graph, ablation=zero)


def test_what_reads_sums_of_senders_refuses():
    model, images = make_model(CONFIG), make_images(CONFIG, 1)
    graph = Graph.of(model, granularity="operator")
    for attempt in (lambda: Edgewise(model, graph), lambda: sender_outputs(model, images, graph)):
        with pytest.raises(InputError, match="cannot be done with an operator graph"):
            attempt()
