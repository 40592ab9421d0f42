"""Converters: equal logits with timm and torchvision, or a refusal that names the reason."""

from __future__ import annotations

import importlib
from functools import partial
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vitsparse.errors import InputError
from vitsparse.model.config import ViTConfig
from vitsparse.model.convert import from_timm, from_torchvision, to_torchvision_state_dict
from vitsparse.model.vit import ViT

SMALL = {"img_size": 16, "patch_size": 4, "num_classes": 7, "embed_dim": 24, "depth": 3, "num_heads": 3}


def library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # torchvision raises RuntimeError beside a torch it was not built for
        pytest.skip(f"{name} cannot be imported: {error}")


@pytest.fixture(scope="module")
def timm() -> ModuleType:
    library("timm")
    return library("timm.models.vision_transformer")


@pytest.fixture(scope="module")
def torchvision() -> ModuleType:
    return library("torchvision.models.vision_transformer")


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random: initial biases, norms and torchvision's classifier are constant and would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.2)
    return model.eval()


def images_for(model: ViT, batch: int = 2) -> torch.Tensor:
    config = model.config
    return torch.randn(batch, config.in_chans, config.img_size, config.img_size,
                       generator=torch.Generator().manual_seed(1)).to(model.pos_embed)


def error_of(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


# --- timm: equal ---------------------------------------------------------------------------------------------------

@st.composite
def architectures(draw) -> dict:
    heads, patch = draw(st.integers(1, 5)), draw(st.sampled_from([2, 3, 4]))
    return {
        "img_size": patch * draw(st.integers(1, 4)), "patch_size": patch, "in_chans": draw(st.sampled_from([1, 3])),
        "num_classes": draw(st.sampled_from([0, 1, 7])), "embed_dim": heads * draw(st.sampled_from([1, 8, 20])),
        "depth": draw(st.integers(1, 3)), "num_heads": heads, "mlp_ratio": draw(st.sampled_from([1.0, 2.7, 4.0])),
        "qkv_bias": draw(st.booleans()), "init_values": draw(st.sampled_from([None, 0.1])),
        "global_pool": draw(st.sampled_from(["token", "avg"])),
    }


@settings(max_examples=25, deadline=None, derandomize=True)
@given(arguments=architectures(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_logits_features_and_keys_equal_timms(timm, arguments, dtype):
    theirs = randomised(timm.VisionTransformer(**arguments, dtype=dtype))
    ours = from_timm(theirs)
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == {
        key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.config == ViTConfig(**{**arguments, "mlp_ratio": ours.config.mlp_ratio})
    assert ours.config.mlp_hidden == int(arguments["embed_dim"] * arguments["mlp_ratio"])
    x, tolerance = images_for(ours), 1e-5 if dtype == torch.float32 else 1e-12
    assert error_of(ours(x), theirs(x)) <= tolerance
    assert error_of(ours.forward_features(x), theirs.forward_features(x)) <= tolerance


def test_state_dicts_load_both_ways(timm):
    theirs, ours = randomised(timm.VisionTransformer(**SMALL, init_values=0.1)), ViT(**SMALL, init_values=0.1).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images_for(ours)
    assert error_of(ours(x), theirs(x)) <= 1e-5
    randomised(ours, seed=3)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert error_of(ours(x), theirs(x)) <= 1e-5


def test_the_surface_gives_what_timms_gives(timm):
    theirs = randomised(timm.VisionTransformer(**SMALL, dtype=torch.float64))
    ours = from_timm(theirs)
    x = images_for(ours)
    for arguments in ({}, {"indices": 2, "norm": True}, {"indices": [0, -1], "output_fmt": "NLC"}):
        (a, mine), (b, other) = ours.forward_intermediates(x, **arguments), theirs.forward_intermediates(x, **arguments)
        assert error_of(a, b) <= 1e-12
        assert [t.shape for t in mine] == [t.shape for t in other]
        assert all(error_of(m, o) <= 1e-12 for m, o in zip(mine, other, strict=True))
    arguments = {"n": 2, "reshape": True, "return_prefix_tokens": True}
    for mine, other in zip(ours.get_intermediate_layers(x, **arguments),
                           theirs.get_intermediate_layers(x, **arguments), strict=True):
        assert all(error_of(m, o) <= 1e-12 for m, o in zip(mine, other, strict=True))
    assert ours.no_weight_decay() <= theirs.no_weight_decay()
    for name in ("num_classes", "embed_dim", "num_features", "num_prefix_tokens", "global_pool"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_rates_eps_mode_and_dtype_are_taken_over(timm):
    norm = partial(nn.LayerNorm, eps=1e-3)
    theirs = timm.VisionTransformer(**SMALL, drop_rate=0.1, pos_drop_rate=0.2, proj_drop_rate=0.3, attn_drop_rate=0.4,
                                    drop_path_rate=0.5, norm_layer=norm, dtype=torch.bfloat16)
    modes = [module.training for module in theirs.eval().train().modules()]
    config = from_timm(theirs).config
    assert (config.drop_rate, config.pos_drop_rate, config.proj_drop_rate, config.attn_drop_rate,
            config.drop_path_rate, config.norm_eps) == (0.1, 0.2, 0.3, 0.4, 0.5, 1e-3)
    assert [module.training for module in theirs.modules()] == modes
    assert from_timm(theirs).training
    assert not from_timm(theirs.eval()).training
    assert from_timm(theirs).pos_embed.dtype == torch.bfloat16
    theirs = randomised(timm.VisionTransformer(**SMALL, norm_layer=norm, dtype=torch.float64))
    assert error_of(from_timm(theirs)(x := images_for(from_timm(theirs))), theirs(x)) <= 1e-12


def test_the_copy_is_independent(timm):
    theirs = randomised(timm.VisionTransformer(**SMALL))
    ours = from_timm(theirs)
    before = ours(x := images_for(ours))
    randomised(theirs, seed=5)
    assert torch.equal(ours(x), before)
    assert all(parameter.requires_grad for parameter in ours.parameters())
    assert from_timm(timm.VisionTransformer(**SMALL, device="meta")).pos_embed.is_meta


# --- timm: refused -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("arguments", "reason"), [
    ({"qk_norm": True}, "qk-norm"),
    ({"reg_tokens": 4}, "register tokens"),
    ({"pre_norm": True}, "pre-norm stem"),
    ({"class_token": False, "global_pool": "avg"}, "has_class_token=False"),
    ({"global_pool": "map"}, "attention pooling"),
    ({"global_pool": "max"}, "global_pool='max'"),
    ({"global_pool": ""}, "global_pool=''"),
    ({"mlp_layer": "SwiGLUPacked"}, "an MLP of another kind"),
    ({"act_layer": "quick_gelu"}, "an activation other than GELU"),
    ({"act_layer": "gelu_tanh"}, "an activation other than GELU"),
    ({"act_layer": lambda: nn.GELU(approximate="tanh")}, "an activation other than GELU"),
    ({"no_embed_class": True}, "no_embed_class=True"),
    ({"dynamic_img_size": True}, "dynamic_img_size=True"),
    ({"pool_include_prefix": True, "global_pool": "avg"}, "pool_include_prefix=True"),
    ({"scale_attn_norm": True}, "scale_attn_norm"),
    ({"scale_mlp_norm": True}, "scale_mlp_norm"),
    ({"fc_norm": True}, "the place of the final norm"),
    ({"fc_norm": False, "global_pool": "avg"}, "the place of the final norm"),
    ({"final_norm": False}, "the place of the final norm"),
    ({"norm_layer": "rmsnorm"}, "norms other than LayerNorm"),
    ({"embed_norm_layer": "layernorm"}, "a norm on the patch embedding"),
    ({"patch_drop_rate": 0.5}, "patch dropout"),
    ({"block_fn": "ResPostBlock"}, "blocks of another kind"),
    ({"block_fn": "ParallelScalingBlock"}, "blocks of another kind"),
    ({"attn_layer": "diff"}, "attention of another kind"),
    ({"proj_bias": False}, "layers without bias"),
    ({"pos_embed": "none"}, "without position embedding"),
    ({"img_size": (16, 32)}, "this patch embedding"),
    ({"img_size": 18}, "this patch embedding"),
])
def test_what_cannot_be_represented_is_refused_by_name(timm, arguments, reason):
    arguments = {key: getattr(timm, value) if key in ("mlp_layer", "block_fn") else value
                 for key, value in arguments.items()}
    with pytest.raises(InputError, match="cannot represent") as error:
        from_timm(timm.VisionTransformer(**{**SMALL, **arguments}))
    assert reason in str(error.value)


def test_other_models_of_timm_are_refused(timm):
    deit, eva = library("timm.models.deit"), library("timm.models.eva")
    with pytest.raises(InputError, match="a distillation token"):
        from_timm(deit.VisionTransformerDistilled(**SMALL))
    with pytest.raises(InputError, match="rotary position embedding"):
        from_timm(eva.Eva(**{**SMALL, "num_heads": 2}, use_rot_pos_emb=True))
    with pytest.raises(InputError, match=r"found: torch.nn.modules.linear.Linear"):
        from_timm(nn.Linear(2, 2))
    with pytest.raises(InputError, match="VisionTransformer"):
        from_timm(ViT(**SMALL))


@pytest.mark.parametrize(("place", "name", "value", "reason"), [
    ("blocks.1.norm2", "eps", 1e-5, "norms with different eps"),
    ("blocks.1.attn", "scale", 0.1, "heads of another number, width or scale"),
    ("blocks.2.attn", "num_heads", 2, "heads of another number, width or scale"),
    ("blocks.1.mlp.drop2", "p", 0.5, "dropout rates that differ"),
    ("blocks.1", "drop_path2", nn.Dropout(0.5), "Dropout as blocks.1.drop_path2"),
    ("blocks.2.attn", "gate", nn.Linear(24, 24), "gated attention"),
    ("", "aux_head", nn.Linear(24, 2), "Linear as aux_head"),
    ("patch_embed.proj", "stride", (2, 2), "this patch embedding"),
    ("patch_embed.proj", "padding", (1, 1), "this patch embedding"),
    ("blocks.1.attn", "qkv", nn.Linear(24, 72, bias=False), "missing"),
])
def test_a_model_changed_by_hand_is_refused(timm, place, name, value, reason):
    model = timm.VisionTransformer(**SMALL)
    setattr(model.get_submodule(place), name, value)
    with pytest.raises(InputError) as error:
        from_timm(model)
    assert reason in str(error.value)


def test_drop_path_rates_must_grow_linearly(timm):
    model = timm.VisionTransformer(**SMALL, drop_path_rate=0.2)
    model.blocks[1].drop_path1.drop_prob = 0.2
    with pytest.raises(InputError, match="do not grow linearly"):
        from_timm(model)


def test_weights_of_several_dtypes_are_refused(timm):
    model = timm.VisionTransformer(**SMALL)
    model.head.half()
    with pytest.raises(InputError, match="several dtypes"):
        from_timm(model)


def test_a_change_that_no_table_foresees_shows_in_the_output(timm):
    model = timm.VisionTransformer(**SMALL)
    model.blocks[1].register_forward_hook(lambda module, inputs, output: output * 1.01)
    with pytest.raises(InputError, match="something in this model that changes its output"):
        from_timm(model)


# --- torchvision ---------------------------------------------------------------------------------------------------

def torchvision_vit(torchvision: ModuleType, **arguments) -> nn.Module:
    return torchvision.VisionTransformer(**{"image_size": 16, "patch_size": 4, "num_layers": 2, "num_heads": 3,
                                            "hidden_dim": 24, "mlp_dim": 50, "num_classes": 7, **arguments})


def test_logits_equal_torchvisions(torchvision):
    theirs = randomised(torchvision_vit(torchvision, dropout=0.1, attention_dropout=0.2).double())
    ours = from_torchvision(theirs)
    x = images_for(ours)
    assert error_of(ours(x), theirs(x)) <= 1e-12
    assert ours.config.mlp_hidden == 50
    assert (ours.config.pos_drop_rate, ours.config.proj_drop_rate, ours.config.attn_drop_rate) == (0.1, 0.1, 0.2)
    assert error_of(ours.float()(x.float()), theirs.float()(x.float())) <= 1e-5


def test_logits_equal_those_of_vit_b_16(torchvision):
    theirs = torchvision.vit_b_16().eval()
    nn.init.normal_(theirs.heads.head.weight)  # torchvision starts with a classifier of zeros
    ours = from_torchvision(theirs)
    with torch.inference_mode():
        x = images_for(ours, batch=1)
        assert error_of(ours(x), theirs(x)) <= 1e-5
    assert ours.config == ViTConfig()


def test_torchvision_keys_round_trip(torchvision):
    theirs, other = randomised(torchvision_vit(torchvision)), torchvision_vit(torchvision)
    state = to_torchvision_state_dict(from_torchvision(theirs))
    assert state.keys() == theirs.state_dict().keys()
    other.load_state_dict(state, strict=True)
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in other.state_dict().items())


@pytest.mark.parametrize(("field", "value"), [("global_pool", "avg"), ("qkv_bias", False), ("init_values", 0.1),
                                              ("norm_eps", 1e-5), ("num_classes", 0)])
def test_what_torchvision_lacks_is_not_exported(field, value):
    with pytest.raises(InputError, match=field):
        to_torchvision_state_dict(ViT(**{**SMALL, field: value}))


def test_what_cannot_be_represented_from_torchvision_is_refused(torchvision):
    stem = [torchvision.ConvStemConfig(out_channels=24, kernel_size=3, stride=4)]
    for arguments, reason in (({"representation_size": 8}, "a hidden layer before the classifier"),
                              ({"conv_stem_configs": stem}, "a convolutional stem")):
        with pytest.raises(InputError, match=reason):
            from_torchvision(torchvision_vit(torchvision, **arguments))
    with pytest.raises(InputError, match=r"found: torch.nn.modules.linear.Linear"):
        from_torchvision(nn.Linear(2, 2))


@pytest.mark.parametrize(("place", "name", "value", "reason"), [
    ("encoder_layer_1.self_attention", "num_heads", 2, "attention of another kind"),
    ("encoder_layer_1.self_attention", "add_zero_attn", True, "attention of another kind"),
    ("encoder_layer_1.self_attention", "dropout", 0.5, "dropout rates that differ"),
    ("encoder_layer_1.self_attention", "bias_k", nn.Parameter(torch.zeros(1, 1, 24)), "unexpected"),
    ("encoder_layer_0.mlp.1", "approximate", "tanh", "an activation other than GELU"),
    ("encoder_layer_1.mlp.4", "p", 0.5, "dropout rates that differ"),
    ("encoder_layer_1.ln_1", "eps", 1e-3, "norms with different eps"),
])
def test_a_torchvision_model_changed_by_hand_is_refused(torchvision, place, name, value, reason):
    model = torchvision_vit(torchvision)
    setattr(model.encoder.layers.get_submodule(place), name, value)
    with pytest.raises(InputError) as error:
        from_torchvision(model)
    assert reason in str(error.value)
