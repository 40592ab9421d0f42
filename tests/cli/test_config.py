"""Configuration: preset < file < flags, and whatever is wrong is named with its file and field."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from vitsparse.cli import flags
from vitsparse.cli.config import Config, checked, load_config, read_yaml, write_config
from vitsparse.cli.presets import PRESETS
from vitsparse.cli.train import Flags
from vitsparse.errors import InputError, MissingFile
from vitsparse.model.config import ViTConfig


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "my.yaml"
        path.write_text(text)
        return path
    return write


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_complete_when_written(preset, tmp_path):
    config = load_config(preset)
    assert config.preset == preset
    ViTConfig(**dataclasses.asdict(config.model), img_size=8 if preset == "digits" else 64)
    write_config(config, tmp_path)
    assert load_config(None, tmp_path / "config.resolved.yaml") == config


def test_the_seeds_experiment_is_as_published():
    config = load_config("tiny-imagenet")
    model = config.model
    assert (model.embed_dim, model.patch_size, model.depth, model.num_heads) == (256, 8, 12, 8)
    assert (config.train.epochs, config.train.batch_size, config.train.amp) == (30, 128, "auto")
    assert config.data.splits == "seed"
    a = config.augment
    assert all((a.flip, a.crop_scale, a.rotation_degrees, a.noise_std, a.erase_prob, a.cutmix_alpha, a.mixup_alpha))


@pytest.mark.parametrize(("text", "place", "hint"), [
    ("train: {epohs: 3}", "train.epohs", "did you mean 'epochs'?"),
    ("trian: {epochs: 3}", "trian", "did you mean 'train'?"),
    ("discover: {treshold: 0.1}", "discover.treshold", "did you mean 'threshold'?"),
    ("train: {epochs: '3'}", "train.epochs", "valid integer"),
    ("train: {epochs: 3.5}", "train.epochs", "integer"),
    ("train: {epochs: -3}", "train.epochs", "at least 1"),
    ("train: {lr: fast}", "train.lr", "valid number"),
    ("bench: {batches: [32, 0]}", "bench.batches", "each at least 1"),
    ("discover: {mlp_groups: 0}", "discover.mlp_groups", "at least 1"),
    ("train: 7", "train", "object"),
    ("train: {seed: 3}", "train.seed", "set seed instead"),
    ("train: {distill_weight: 0.5}", "train.distill_weight", "finetune"),
    ("augment: {flip: 7}", "augment.flip", "probability"),
    ("augment: {crop_scale: [0.5, 2]}", "augment.crop_scale", "high <= 1"),
    ("data: {name: digit}", "data.name", "'digits' or 'tiny_imagenet'"),
    ("data: {strict: 1}", "data.strict", "valid boolean"),
    ("bench: {batches: [1, x]}", "bench.batches.1", "valid integer"),
    ("model: {depth: 2.5}", "model.depth", "integer"),
])
def test_a_wrong_value_is_named_with_file_and_field(write, text, place, hint):
    path = write(text)
    with pytest.raises(InputError) as caught:
        load_config("digits", path)
    assert caught.value.where == f"{path}: {place}"
    assert hint in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "just words", "train: {epochs: 3\n",
                                  "!!python/object/apply:os.getcwd []"])
def test_a_file_that_is_no_mapping_is_refused_with_its_name(write, text):
    path = write(text)
    with pytest.raises(InputError) as caught:
        load_config(None, path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_an_unknown_preset(tmp_path):
    with pytest.raises(MissingFile, match=r"nowhere\.yaml"):
        load_config(None, tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="did you mean 'digits'"):
        load_config("digit")


def test_yaml_numbers_and_words_are_what_they_look_like(write):
    text = "a: 1e-3\nb: off\nc: true\nd: .5\ne: 12\nf: 1e5x\ng: -2.5E+3\nh: no\ni: null\n"
    assert read_yaml(write(text)) == {"a": 1e-3, "b": "off", "c": True, "d": 0.5, "e": 12, "f": "1e5x", "g": -2500.0,
                                      "h": "no", "i": None}
    config = load_config(None, write("train: {amp: off, lr: 1e-4}"))
    assert (config.train.amp, config.train.lr) == ("off", 1e-4)


def test_an_empty_file_changes_nothing(write):
    assert load_config("digits", write("")) == load_config("digits")


def test_flags_go_over_the_file_and_the_file_over_the_preset(write):
    path = write("preset: tiny-imagenet\nseed: 4\ntrain: {epochs: 7, lr: 0.002}\n")
    found, config = flags.parse(Flags, ["--config", str(path), "--train.lr", "0.003"])
    assert (config.preset, config.seed) == ("tiny-imagenet", 4)
    assert (config.train.epochs, config.train.lr, config.train.batch_size) == (7, 0.003, 128)
    assert found.out == Path("runs/tiny-imagenet/train")
    assert config.recipe("train").seed == 4


def test_short_names_for_the_data(tmp_path):
    _, config = flags.parse(Flags, ["--preset", "tiny-imagenet-small", "--data", str(tmp_path), "--classes", "5"])
    assert (config.data.root, config.data.classes, config.data.name) == (str(tmp_path), 5, "tiny_imagenet")


def test_checked_values_are_those_of_the_dataclass():
    assert checked({}, where="nothing") == Config()
    assert checked(Config().to_dict(), where="all") == Config()
    assert "seed" not in Config().to_dict()["train"]
    yaml.safe_dump(Config().to_dict())
