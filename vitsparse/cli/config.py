"""The configuration of a run as one frozen value: preset, then file, then flags.

What is unknown or of a wrong type is refused, with the file and the key. Every section is a frozen
dataclass: the library's where it has one (``Recipe``, ``Augmentation``), else one of those below. A file holds any
part of it, in YAML.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..circuit.files import existing_file, write_text
from ..data import Augmentation
from ..errors import InputError, nearest
from ..training import Recipe
from .presets import PRESETS


@dataclass(frozen=True)
class DataConfig:
    """Which images."""

    name: Literal["digits", "tiny_imagenet"] = "digits"
    root: Annotated[str | None, tyro.conf.arg(aliases=("--data",))] = None
    """zip, unpacked folder, or folder of parquet shards; the digits are embedded and need none"""
    classes: Annotated[int | None, tyro.conf.arg(aliases=("--classes",))] = None
    """take only the first so many classes"""
    splits: Literal["standard", "seed"] = "standard"
    strict: bool = False
    """refuse images that cannot be decoded instead of leaving them out"""
    train_images: int | None = None
    """take only so many training images"""
    eval_images: int | None = None
    """take only so many images for validation, and as many for the test"""


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the ViT; image size, channels and classes are those of the data set."""

    patch_size: int = 2
    embed_dim: int = 64
    depth: int = 6
    num_heads: int = 4
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    init_values: float | None = None
    global_pool: Literal["token", "avg"] = "token"
    drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0


@dataclass(frozen=True)
class DiscoverConfig:
    """The search for the circuit (ACDC)."""

    granularity: Literal["qkv", "head", "layer", "block"] = "head"
    mlp_groups: int = 1
    ablation: Literal["mean", "zero"] = "mean"
    ablation_images: int = 2048
    """training images that the mean is taken over"""
    metric: Literal["kl", "ce"] = "kl"
    threshold: float = 1e-2
    """an edge is cut if that raises the metric by less, in nats"""
    images: int = 256
    """training images that the metric is measured on"""
    batch_size: int = 256

    def __post_init__(self):
        _at_least_one(self, "mlp_groups", "ablation_images", "images", "batch_size")


@dataclass(frozen=True)
class SparsifyConfig:
    """How the sparse model is run."""

    backend: str = "auto"


@dataclass(frozen=True)
class BenchConfig:
    """How the models are judged and timed."""

    batch_size: int = 256
    """images at a time for accuracy, loss and KL"""
    batches: tuple[int, ...] = (1, 32)
    """batch sizes that latency is measured at"""
    repeats: int = 50
    min_seconds: float = 1.0
    """measuring time for each candidate"""
    baselines: tuple[Literal["eager", "compile", "openvino"], ...] = ("eager", "compile", "openvino")
    """ways to run the dense model that the sparse ones must beat; one that cannot run is left out with a note"""

    def __post_init__(self):
        _at_least_one(self, "batch_size", "repeats")
        if not self.batches or min(self.batches) < 1:
            raise _out_of_range("batches", "one batch size or more, each at least 1", self.batches)
        if not 0 <= self.min_seconds < float("inf"):
            raise _out_of_range("min_seconds", "a number of seconds, at least 0", self.min_seconds)


@dataclass(frozen=True)
class Config:
    """Everything that decides the result of a run, and where it goes (``out``)."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    preset: str = "digits"
    seed: int = 0
    device: str = "auto"
    out: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: Recipe = field(default_factory=Recipe)
    augment: Augmentation = field(default_factory=Augmentation)
    discover: DiscoverConfig = field(default_factory=DiscoverConfig)
    sparsify: SparsifyConfig = field(default_factory=SparsifyConfig)
    finetune: Recipe = field(default_factory=Recipe)
    bench: BenchConfig = field(default_factory=BenchConfig)

    def __post_init__(self):
        for name in ("train", "finetune"):
            if getattr(self, name).seed != 0:
                raise InputError("a run has one seed", where=f"{name}.seed", found=getattr(self, name).seed,
                                 remedy="leave it out and set seed instead")
        if self.train.distill_weight:
            raise InputError("the dense model has no teacher", where="train.distill_weight", expected=0,
                             found=self.train.distill_weight, remedy="distillation belongs into finetune")

    def recipe(self, section: str) -> Recipe:
        """The recipe ``train`` or ``finetune`` with the seed of the run."""
        return dataclasses.replace(getattr(self, section), seed=self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in a configuration file."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        for name in ("train", "finetune"):
            del values[name]["seed"]
        return values


def load_config(preset: str | None = None, file: str | Path | None = None) -> Config:
    """The configuration of ``preset`` (or the one that ``file`` names, or ``digits``) with ``file`` over it.

    Raises :class:`InputError` naming file and field for keys that do not exist, values of a wrong type or out of range.
    """
    given = {} if file is None else read_yaml(file)
    preset = preset or given.get("preset") or Config.preset
    if preset not in PRESETS:
        raise InputError("there is no such preset", where="preset", expected=", ".join(PRESETS), found=repr(preset),
                         remedy=nearest(preset, PRESETS))
    return checked(merge(PRESETS[preset], {**given, "preset": preset}), where=file or f"preset {preset}")


def checked(values: Mapping[str, Any], *, where: object) -> Config:
    """``values`` as a :class:`Config`; ``where`` names their file in complaints."""
    try:
        return _adapter().validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise _readable(error.errors()[0], where) from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over`` in its place, section by section."""
    merged = dict(base)
    for key, value in over.items():
        sections = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if sections else value
    return merged


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    text = existing_file(path).read_text(encoding="utf-8", errors="replace")
    try:
        values = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader, see below)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError("the file is not valid YAML", where=path, found=" ".join(str(error).split())) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError("a configuration is a mapping of keys to values", where=path, expected="key: value",
                         found=type(values).__name__)
    return values


def write_config(config: Config, folder: Path) -> None:
    """``config.resolved.yaml``: every value that was in force, loadable with ``--config``."""
    write_text(folder / "config.resolved.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-3`` as a number and ``off`` as a word, as YAML 1.2 does and people expect."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|True|false|False"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(
    r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf)$|\.(nan|NaN)$"), list("-+.0123456789"))


def _at_least_one(section: Any, *names: str) -> None:
    for name in names:
        if getattr(section, name) < 1:
            raise _out_of_range(name, "an integer, at least 1", getattr(section, name))


def _out_of_range(name: str, expected: str, found: object) -> InputError:
    return InputError("a configuration value is out of range", where=name, expected=expected, found=repr(found))


@functools.cache
def _adapter() -> TypeAdapter:
    return TypeAdapter(Config)


def _readable(error: Mapping[str, Any], where: object) -> InputError:
    """pydantic's first complaint in our words."""
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "unexpected_keyword_argument":
        known = [f.name for f in dataclasses.fields(_section(error["loc"][:-1]))]
        return InputError("unknown configuration key", where=f"{where}: {place}", expected=", ".join(known),
                          found=error["loc"][-1], remedy=nearest(error["loc"][-1], known))
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        inner = f"{place}.{cause.where}".strip(".")
        return InputError(cause.what, where=f"{where}: {inner}", expected=cause.expected, found=cause.found,
                          remedy=cause.remedy)
    return InputError("a configuration value is of the wrong type", where=f"{where}: {place}",
                      expected=error["msg"].removeprefix("Input should be "), found=repr(error["input"]))


def _section(path: tuple[str | int, ...]) -> type:
    """The dataclass at ``path`` of the configuration."""
    value: Any = Config()
    for name in path:
        value = getattr(value, str(name))
    return type(value)
