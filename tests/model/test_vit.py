"""The dense ViT: timm's keys, what it computes, what it refuses, and how it behaves as a module."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from einops import einsum

from vitsparse.errors import InputError
from vitsparse.model.config import ViTConfig
from vitsparse.model.vit import DropPath, ViT

SMALL = {"img_size": 12, "patch_size": 4, "num_classes": 5, "embed_dim": 24, "depth": 3, "num_heads": 3}


def small(seed: int = 0, **arguments) -> ViT:
    """A model in double precision whose every parameter is random, biases and norms included."""
    torch.manual_seed(seed)
    model = ViT(**{**SMALL, **arguments}, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def images(batch: int = 2, **arguments) -> torch.Tensor:
    shape = {**SMALL, "in_chans": 3, **arguments}
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, shape["in_chans"], shape["img_size"], shape["img_size"], generator=generator,
                       dtype=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


# --- configuration -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("field", "value"), [
    ("img_size", 0), ("img_size", 13), ("img_size", (12, 12)), ("patch_size", 4.0), ("in_chans", True),
    ("num_classes", -1), ("embed_dim", 25), ("depth", 0), ("num_heads", 0), ("mlp_ratio", 0.0),
    ("mlp_ratio", float("nan")), ("qkv_bias", 1), ("init_values", 0.0), ("global_pool", "max"), ("norm_eps", 0.0),
    ("drop_rate", 1.0), ("pos_drop_rate", -0.1), ("proj_drop_rate", "0.1"), ("attn_drop_rate", 2),
    ("drop_path_rate", float("inf")),
])
def test_an_invalid_argument_is_named(field, value):
    with pytest.raises(InputError, match=field):
        ViT(**{**SMALL, field: value})


def test_an_unknown_argument_gets_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'embed_dim'"):
        ViT(**SMALL, embed_dims=24)


def test_config_round_trips_and_counts():
    config = ViT(**SMALL, mlp_ratio=2.5, init_values=0.1).config
    assert ViTConfig.from_dict(config.to_dict()) == config
    assert (config.num_patches, config.num_tokens, config.head_dim, config.mlp_hidden) == (9, 10, 8, 60)
    with pytest.raises(InputError, match="table"):
        ViTConfig.from_dict([("depth", 3)])


# --- what it computes ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("arguments", [{}, {"global_pool": "avg", "init_values": 0.5}, {"qkv_bias": False}])
def test_the_forward_is_the_formula(arguments):
    """Written out once more, head by head, with no library attention."""
    model, x = small(**arguments), images()
    config, p = model.config, model.state_dict()
    patches = F.conv2d(x, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=config.patch_size)
    r = torch.cat([p["cls_token"].expand(2, 1, -1), patches.flatten(2).mT], 1) + p["pos_embed"]

    def norm(r, name):
        return F.layer_norm(r, (config.embed_dim,), p[f"{name}.weight"], p[f"{name}.bias"], config.norm_eps)

    for layer in range(config.depth):
        at, d = f"blocks.{layer}", config.head_dim
        gamma1, gamma2 = (p.get(f"{at}.ls{i}.gamma", torch.ones(config.embed_dim, dtype=r.dtype)) for i in (1, 2))
        qkv = F.linear(norm(r, f"{at}.norm1"), p[f"{at}.attn.qkv.weight"], p.get(f"{at}.attn.qkv.bias"))
        q, k, v = qkv.split(config.embed_dim, dim=-1)
        total = p[f"{at}.attn.proj.bias"]
        for head in range(config.num_heads):
            own = slice(head * d, (head + 1) * d)
            scores = einsum(q[..., own], k[..., own], "b i d, b j d -> b i j") / d**0.5
            total = total + scores.softmax(-1) @ v[..., own] @ p[f"{at}.attn.proj.weight"][:, own].T
        r = r + gamma1 * total
        hidden = F.linear(norm(r, f"{at}.norm2"), p[f"{at}.mlp.fc1.weight"], p[f"{at}.mlp.fc1.bias"])
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        r = r + gamma2 * F.linear(hidden, p[f"{at}.mlp.fc2.weight"], p[f"{at}.mlp.fc2.bias"])
    pooled = norm(r, "norm")[:, 0] if config.global_pool == "token" else norm(r[:, 1:].mean(1), "fc_norm")
    assert close(model(x), F.linear(pooled, p["head.weight"], p["head.bias"]))


def test_initialisation_follows_timm():
    torch.manual_seed(0)
    state = ViT(img_size=32, patch_size=4, embed_dim=128, depth=2, num_heads=4, num_classes=50).state_dict()
    for key, tensor in state.items():
        if key.endswith("bias") and not key.startswith("patch_embed"):
            assert not tensor.any(), key
        elif "norm" in key:
            assert (tensor == 1).all(), key
        elif key != "cls_token" and not key.startswith("patch_embed"):
            assert tensor.std() == pytest.approx(0.02, rel=0.05), key
    assert 0 < state["cls_token"].abs().max() < 1e-4
    assert (ViT(**SMALL, init_values=1e-3).blocks[1].ls2.gamma == 1e-3).all()


def test_forward_is_features_then_head():
    for arguments in ({}, {"global_pool": "avg"}, {"num_classes": 0}):
        model, x = small(**arguments), images()
        features = model.forward_features(x)
        assert features.shape == (2, 10, 24)
        assert torch.equal(model.forward_head(features), model(x))
        assert torch.equal(model.get_classifier()(model.forward_head(features, pre_logits=True)), model(x))
        assert model.num_features == model.embed_dim == 24
        assert (model.depth, model.num_heads, model.num_prefix_tokens) == (3, 3, 1)


# --- intermediates -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("arguments", [{}, {"global_pool": "avg", "init_values": 0.5}])
def test_intermediates_add_up_to_the_residual_stream(arguments):
    model, x = small(**arguments), images()
    logits, found = model(x, intermediates=model.intermediate_names())
    assert tuple(found) == model.intermediate_names()
    assert close(logits, model(x))
    stream = found["embed"]
    assert torch.equal(stream, model.embed(x))
    for layer, block in enumerate(model.blocks):
        at = f"blocks.{layer}"
        assert torch.equal(found[f"{at}.resid_pre"], stream)
        assert torch.equal(found[f"{at}.resid_mid"], stream + found[f"{at}.attn.out"])
        stream = found[f"{at}.resid_mid"] + found[f"{at}.mlp.out"]
        assert torch.equal(found[f"{at}.resid_post"], stream)
        q, k, v, z = (found[f"{at}.attn.{name}"] for name in "qkvz")
        assert q.shape == (2, 10, 3, 8)
        pattern = found[f"{at}.attn.pattern"]
        scores = einsum(q, k, "b i h d, b j h d -> b h i j") / 8**0.5
        assert close(pattern, scores.softmax(-1))
        assert close(z, einsum(pattern, v, "b h i j, b j h d -> b i h d"))
        assert close(found[f"{at}.attn.out"], block.ls1(block.attn.proj(z.flatten(2))))
        assert close(found[f"{at}.mlp.out"], block.ls2(block.mlp.fc2(found[f"{at}.mlp.hidden"])))
    assert torch.equal(found["resid_final"], stream)
    assert torch.equal(model.head(found["pre_logits"]), logits)


def test_only_the_wanted_intermediates_are_kept_and_gradients_reach_them():
    model, x = small(), images()
    logits, found = model(x, intermediates=["blocks.1.mlp.out"])
    assert list(found) == ["blocks.1.mlp.out"]
    (gradient,) = torch.autograd.grad(logits.sum(), found["blocks.1.mlp.out"])
    assert gradient.abs().max() > 0
    assert model(x, intermediates=[])[1] == {}
    assert list(model(x, intermediates="embed")[1]) == ["embed"]


def test_an_unknown_intermediate_gets_the_nearest_name():
    with pytest.raises(InputError, match=r"did you mean 'blocks.1.attn.pattern'"):
        small()(images(), intermediates=["blocks.1.attn.patterns"])


def test_block_outputs_in_both_layouts():
    model, x = small(), images()
    _, found = model(x, intermediates=[f"blocks.{layer}.resid_post" for layer in range(3)])
    features, outputs = model.forward_intermediates(x, output_fmt="NLC", return_prefix_tokens=True)
    assert torch.equal(features, model.forward_features(x))
    for (patches, prefix), whole in zip(outputs, found.values(), strict=True):
        assert torch.equal(torch.cat([prefix, patches], 1), whole)
    (last,) = model.forward_intermediates(x, [-1], norm=True, intermediates_only=True)
    assert last.shape == (2, 24, 3, 3)
    assert torch.equal(last.flatten(2).mT, features[:, 1:])
    assert torch.equal(model.get_intermediate_layers(x, reshape=True, norm=True)[0], last)


@pytest.mark.parametrize("indices", [0, 4, [3], [-4]])
def test_a_block_that_does_not_exist_is_refused(indices):
    with pytest.raises(InputError, match="no such block"):
        small().forward_intermediates(images(), indices)


def test_an_unknown_layout_is_refused():
    with pytest.raises(InputError, match="NHWC"):
        small().forward_intermediates(images(), output_fmt="NHWC")


# --- bad images ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bad", [torch.zeros(2, 3, 12, 16), torch.zeros(2, 1, 12, 12), torch.zeros(3, 12, 12),
                                 torch.zeros(2, 3, 12, 12, dtype=torch.uint8)])
def test_images_of_another_shape_or_kind_are_refused(bad):
    with pytest.raises(InputError) as error:
        ViT(**SMALL)(bad)
    assert "[B, 3, 12, 12]" in str(error.value)
    assert str(list(bad.shape)) in str(error.value)


# --- as a module ---------------------------------------------------------------------------------------------------

def test_reset_classifier_keeps_the_rest():
    model = small().train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.reset_classifier(7)
    assert model.num_classes == model.config.num_classes == 7
    assert model(images()).shape == (2, 7)
    assert model.head.weight.dtype == torch.float64
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items() if "head" not in key)
    model.reset_classifier(0)
    assert model(images()).shape == (2, 24)


def test_no_weight_decay_names_parameters():
    model = small()
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()


def test_grad_checkpointing_changes_no_gradient():
    model, x = small().train(), images()
    plain = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    model.set_grad_checkpointing()
    again = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert all(close(a, b) for a, b in zip(again, plain, strict=True))


def test_every_parameter_gets_a_gradient():
    """DistributedDataParallel needs it: an unused parameter would hang or raise."""
    for pool in ("token", "avg"):
        model = small(global_pool=pool, init_values=0.1)
        model(images()).square().sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_rates_act_in_training_only():
    rates = dict.fromkeys(("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"), 0.3)
    model, x = small(**rates), images()
    assert torch.equal(model(x), small()(x))
    model.train()
    torch.manual_seed(0)
    first = model(x)
    assert not torch.equal(first, model(x))
    torch.manual_seed(0)
    assert torch.equal(first, model(x))


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    out = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (out == out[:, :1, :1]).all()
    assert out.mean() == pytest.approx(1, abs=0.05)
    blocks = ViT(**SMALL, drop_path_rate=0.2).blocks
    assert [getattr(block.drop_path2, "rate", 0.0) for block in blocks] == [0, 0.1, 0.2]


def test_copies_and_the_meta_device():
    model, x = small(), images()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.head.bias.add_(1)
    assert close(twin(x), model(x) + 1)
    abstract = ViT(**SMALL, device="meta", dtype=torch.float64)
    assert abstract(x.to("meta")).shape == (2, 5)
    abstract.load_state_dict(model.state_dict(), strict=True, assign=True)
    assert torch.equal(abstract(x), model(x))
    half = ViT(**SMALL, dtype=torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("arguments", [{}, {"global_pool": "avg", "init_values": 0.5}])
def test_traced_whole_by_compile_and_export(arguments):
    model, x = small(**arguments), images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert close(compiled(x), model(x))
    names = ["blocks.0.attn.pattern", "resid_final"]
    logits, found = compiled(x, intermediates=names)
    assert close(logits, model(x))
    assert close(found["resid_final"], model(x, intermediates=names)[1]["resid_final"])
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert close(program(images(batch=5)), model(images(batch=5)))
