"""Models by name, and their files: strict, atomic, and clear about what does not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitsparse.errors import InputError, MissingFile
from vitsparse.model.registry import MODELS, create_model, list_models
from vitsparse.model.vit import ViT
from vitsparse.model.weights import load_pretrained, read_weights, save_pretrained

TRAINED = (Path(__file__).parents[2] / ".." / "shared" / "data" / "models"
           / "vit_p8_d128_l6_h4_tinyimagenet20.safetensors")
SMALL = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture
def model() -> ViT:
    torch.manual_seed(0)
    return ViT(**SMALL, global_pool="avg", init_values=0.1, norm_eps=1e-5, drop_rate=0.1).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


# --- names ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "sizes"), [
    ("vit_tiny_imagenet_p8_d256_l12_h8", (64, 8, 3, 200, 256, 12, 8)),
    ("vit_tiny_imagenet_p8_d128_l6_h4", (64, 8, 3, 200, 128, 6, 4)),
    ("vit_digits_p2_d64_l6_h4", (8, 2, 1, 10, 64, 6, 4)),
    ("vit_tiny_patch16_224", (224, 16, 3, 1000, 192, 12, 3)),
    ("vit_small_patch16_224", (224, 16, 3, 1000, 384, 12, 6)),
    ("vit_base_patch16_224", (224, 16, 3, 1000, 768, 12, 12)),
    ("vit_tiny_patch8_64", (64, 8, 3, 1000, 192, 12, 3)),
    ("vit_imagenet_p32_d96_l2_h4", (224, 32, 3, 1000, 96, 2, 4)),
])
def test_a_name_says_the_architecture(name, sizes):
    config = create_model(name, device="meta").config
    assert (config.img_size, config.patch_size, config.in_chans, config.num_classes, config.embed_dim, config.depth,
            config.num_heads) == sizes


def test_the_parameter_count_of_the_named_model():
    """Worked out by hand: 12 blocks of 789,760, embedding 49,408, tokens 256 + 65 * 256, norm 512, head 51,400."""
    model = create_model("vit_tiny_imagenet_p8_d256_l12_h8", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 12 * 789_760 + 49_408 + 256 + 16_640 + 512 + 51_400


def test_overrides_win_and_none_keeps_what_the_name_says():
    model = create_model("vit_digits_p2_d64_l6_h4", num_classes=4, depth=1, init_values=None, in_chans=None,
                         global_pool="avg", device="meta", dtype=torch.float64)
    assert (model.num_classes, model.depth, model.config.in_chans, model.global_pool) == (4, 1, 1, "avg")
    assert model.head.weight.dtype == torch.float64
    assert create_model("vit_birds_p4_d16_l1_h2", img_size=12, num_classes=2, device="meta").config.num_tokens == 10


@pytest.mark.parametrize(("name", "message"), [
    ("vit_tiny_patch16_244x", "did you mean 'vit_tiny_patch16_224'"),
    ("resnet50", "list_models"),
    ("vit_huge_patch14_224", "unknown model"),
    ("vit_digit_p2_d64_l6_h4", "did you mean 'digits'"),
    ("models/best", "local-dir:models/best"),
    ("hf-hub:somebody/something", "unknown source"),
    ("local_dir:here", "did you mean 'local-dir'"),
])
def test_an_unknown_name_is_refused_with_the_nearest(name, message):
    with pytest.raises(InputError, match=message):
        create_model(name)


def test_bad_arguments_of_the_factory():
    with pytest.raises(InputError, match="did you mean 'num_heads'"):
        create_model("vit_digits_p2_d64_l6_h4", num_head=2)
    with pytest.raises(InputError, match="pretrained"):
        create_model("vit_tiny_patch16_224", pretrained=True)
    with pytest.raises(InputError, match="num_heads"):
        create_model("vit_digits_p2_d64_l6_h5")


def test_list_models_filters_by_wildcard():
    assert list_models() == sorted(MODELS)
    assert list_models("*patch16*") == ["vit_base_patch16_224", "vit_small_patch16_224", "vit_tiny_patch16_224"]
    assert list_models("nothing*") == []
    for name in MODELS:
        create_model(name, device="meta")


# --- files ---------------------------------------------------------------------------------------------------------

def test_a_saved_model_comes_back_equal(model, images, tmp_path):
    save_pretrained(model, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    sources = [load_pretrained(tmp_path / "model"), create_model(f"local-dir:{tmp_path / 'model'}"),
               load_pretrained(tmp_path / "model" / "model.safetensors")]
    for again in sources:
        assert again.config == model.config
        assert torch.equal(again.eval()(images), model(images))
        assert all(parameter.requires_grad for parameter in again.parameters())
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["model_args"]["depth"]) == ("vit", 3, 2)


def test_dtypes_survive_and_can_be_asked_for(model, tmp_path):
    save_pretrained(model.to(torch.bfloat16), tmp_path)
    state, _ = read_weights(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert load_pretrained(tmp_path).pos_embed.dtype == torch.float32
    assert load_pretrained(tmp_path, dtype=torch.float64).pos_embed.dtype == torch.float64


def test_rates_may_change_on_loading_but_not_the_function(model, tmp_path):
    save_pretrained(model, tmp_path)
    assert create_model(f"local-dir:{tmp_path}", drop_path_rate=0.2).config.drop_path_rate == 0.2
    assert load_pretrained(tmp_path, init_values=0.5).config.init_values == 0.5
    for name, value in (("num_heads", 4), ("num_classes", 7), ("global_pool", "token"), ("norm_eps", 1e-6)):
        with pytest.raises(InputError, match=name):
            load_pretrained(tmp_path, **{name: value})
    with pytest.raises(InputError, match="checkpoint_path"):
        create_model(f"local-dir:{tmp_path}", checkpoint_path="other.safetensors")


def test_a_failed_write_leaves_the_old_model_whole(model, images, tmp_path, monkeypatch):
    save_pretrained(model, tmp_path)

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    other = ViT(**SMALL, global_pool="avg", init_values=0.1, norm_eps=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match="No space left"):
            save_pretrained(other, tmp_path)
    assert torch.equal(load_pretrained(tmp_path).eval()(images), model(images))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("change", "message"), [
    (lambda state: state.pop("head.bias"), r"missing head.bias \[3\]"),
    (lambda state: state.update(extra=torch.zeros(2)), r"unexpected extra \[2\]"),
    (lambda state: state.update({"norm.weight": torch.ones(16)}), "unexpected norm.weight"),
    (lambda state: state.update(pos_embed=torch.zeros(1, 9, 16)), r"pos_embed is \[1, 9, 16\], expected \[1, 5, 16\]"),
    (lambda state: state.update(cls_token=torch.full((1, 1, 16), torch.nan)), "cls_token holds NaN"),
    (lambda state: state.update(cls_token=torch.zeros(1, 1, 16, dtype=torch.int64)), r"cls_token holds torch.int64"),
    (lambda state: [state.pop(key) for key in list(state) if key.startswith("blocks.1.")], "expected: 2 blocks"),
    (lambda state: state.clear(), "0 blocks"),
])
def test_weights_that_do_not_fit_are_named(model, tmp_path, change, message):
    save_pretrained(model, tmp_path)
    state = dict(model.state_dict())
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(("text", "message"), [
    ("{", "not valid JSON"),
    ("[]", "not the configuration of a dense ViT"),
    ('{"format": "vitsparse.circuit", "version": 1}', "format"),
    ('{"format": "vitsparse.vit", "version": 2}', "version: 1"),
    ('{"format": "vitsparse.vit", "version": 1, "architecture": "resnet"}', "architecture"),
    ('{"format": "vitsparse.vit", "version": 1, "architecture": "vit", "num_classes": 3}', "incomplete"),
    ('{"format": "vitsparse.vit", "version": 1, "architecture": "vit", "num_classes": 3, "model_args": {"dept": 2}}',
     "did you mean 'depth'"),
    ('{"format": "vitsparse.vit", "version": 1, "architecture": "vit", "num_classes": 3, "model_args":'
     ' {"depth": 1000000000}}', "1000000000 blocks"),
])
def test_a_bad_configuration_is_refused(model, tmp_path, text, message):
    save_pretrained(model, tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_files_that_are_missing_or_no_weights(model, tmp_path):
    with pytest.raises(MissingFile):
        create_model("local-dir:" + str(tmp_path / "nowhere"))
    with pytest.raises(MissingFile, match="safetensors"):
        load_pretrained(tmp_path)
    (tmp_path / "model.pth").write_bytes(b"\x80\x02 not weights")
    with pytest.raises(InputError, match="safetensors only"):
        create_model("vit_digits_p2_d64_l6_h4", checkpoint_path=str(tmp_path / "model.pth"))
    save_file(dict(model.state_dict()), tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="what model they belong to"):
        load_pretrained(tmp_path / "bare.safetensors")
    save_file(dict(model.state_dict()), tmp_path / "odd.safetensors", metadata={"config": "{"})
    with pytest.raises(InputError, match="metadata is not valid JSON"):
        load_pretrained(tmp_path / "odd.safetensors")


# --- checkpoint_path -----------------------------------------------------------------------------------------------

def test_a_checkpoint_brings_its_number_of_classes(tmp_path):
    torch.manual_seed(0)
    source = create_model("vit_digits_p2_d64_l6_h4", depth=1, num_classes=4)
    save_file(dict(source.state_dict()), path := str(tmp_path / "bare.safetensors"))
    again = create_model("vit_digits_p2_d64_l6_h4", checkpoint_path=path, depth=1)
    assert again.num_classes == 4
    assert torch.equal(again.head.weight, source.head.weight)
    with pytest.raises(InputError, match=r"head.weight is \[4, 64\], expected \[10, 64\]"):
        create_model("vit_digits_p2_d64_l6_h4", checkpoint_path=path, depth=1, num_classes=10)


def test_a_checkpoint_of_another_model_is_refused_even_where_shapes_agree(model, tmp_path):
    save_pretrained(model, tmp_path)
    path, name = str(tmp_path / "model.safetensors"), "vit_odd_p4_d16_l2_h{}"
    arguments = {**SMALL, "global_pool": "avg", "init_values": 1.0, "norm_eps": 1e-5, "checkpoint_path": path}
    del arguments["num_heads"]
    assert create_model(name.format(2), **arguments).num_heads == 2
    with pytest.raises(InputError, match="another num_heads"):
        create_model(name.format(4), **arguments)


@pytest.mark.skipif(not TRAINED.exists(), reason="the trained model of the shared data is absent")
def test_a_trained_checkpoint_with_its_configuration_loads():
    named = create_model("vit_tiny_imagenet_p8_d128_l6_h4", checkpoint_path=str(TRAINED))
    alone = load_pretrained(TRAINED)
    assert named.num_classes == alone.num_classes == 20
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(named.eval()(images), alone.eval()(images))
    with pytest.raises(InputError, match="another depth"):
        create_model("vit_tiny_imagenet_p8_d128_l7_h4", checkpoint_path=str(TRAINED))
