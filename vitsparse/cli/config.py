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
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..circuit.files import existing_file, write_text
from ..data import Augmentation
from ..discovery import METHODS
from ..errors import InputError, nearest
from ..evaluation.metrics import metric_named
from ..training import Recipe
from .presets import PRESETS

# What only some searches read; the others refuse it.
SETTINGS = ("corruption", "threshold", "steps", "variant", "sparsity", "lr", "budget", "cut_edges", "cost", "select",
            "edges", "by")

# A list of class numbers that is one word on the command line.
_COMMAS = tyro.constructors.PrimitiveConstructorSpec[tuple[int, ...]](
    nargs=1, metavar="INT,INT,...", str_from_instance=lambda numbers: [",".join(map(str, numbers))],
    instance_from_str=lambda words: tuple(int(number) for number in words[0].split(",") if number),
    is_instance=lambda value: isinstance(value, tuple))


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
    """The search for the circuit. Settings left out are the method's own choice; those it does not have are refused."""

    method: Annotated[str, tyro.conf.arg(aliases=("--method",), help=" or ".join(METHODS))] = "acdc"
    granularity: Literal["qkv", "head", "layer", "block", "operator"] = "head"
    mlp_groups: int = 1
    metric: Annotated[str | None, tyro.conf.arg(aliases=("--metric",))] = None
    """kl, ce, logit_difference or logit_difference:a:b"""
    classes: Annotated[tuple[int, ...], _COMMAS] = ()
    """find the circuit of these classes, such as 3,7,9: on their images, among their logits"""
    images: int = 256
    """training images that the metric is measured on"""
    batch_size: int = 256
    ablation: Literal["mean", "zero", "optimal", "counterfactual"] = "mean"
    """what a cut edge carries; counterfactual is for analysis only and cannot be compiled"""
    ablation_images: int = 2048
    """training images that the ablation is measured on"""
    ablation_steps: int = 500
    """ablation optimal: updates of what it learns"""
    corruption: str | None = None
    """ablation counterfactual: other_class, permute, swap_patches, blur, noise or mean_image"""
    threshold: float | None = None
    """acdc: an edge is cut if that raises the metric by less; select threshold: edges are kept from this score on"""
    steps: int | None = None
    """eap_ig: points on its path; edge_pruning: updates of its mask"""
    variant: str | None = None
    """eap_ig: inputs or activations"""
    sparsity: float | None = None
    """edge_pruning: share of the edges to cut"""
    lr: float | None = None
    """edge_pruning: learning rate of its mask"""
    budget: float | None = None
    """budgeted: largest latency, as a share of the dense model's"""
    cut_edges: float | None = None
    """budgeted: least share of the edges between live nodes to cut"""
    cost: str | None = None
    """budgeted, node_importance: cost table of the device; if not given, cost.json in the output folder (made there)"""
    select: Annotated[Literal["top_k", "greedy", "threshold"] | None, tyro.conf.arg(aliases=("--select",))] = None
    """methods that give scores: how the circuit is chosen from them, top_k if not given"""
    edges: Annotated[float | None, tyro.conf.arg(aliases=("--edges",))] = None
    """select top_k or greedy: how many edges stay, or which share of them if below 1; edge_pruning knows, else 0.2"""
    by: Literal["magnitude", "signed"] | None = None
    """select: by how much edges matter in either direction (if not given), or by how much their cut hurts"""
    prune: Annotated[bool, tyro.conf.arg(aliases=("--prune",))] = False
    """then drop every edge that is on no path from input to logits"""

    def __post_init__(self):
        _at_least_one(self, "mlp_groups", "ablation_images", "ablation_steps", "images", "batch_size")
        if self.method not in METHODS:
            raise InputError("there is no such method", where="method", expected=", ".join(METHODS),
                             found=repr(self.method), remedy=nearest(self.method, METHODS))
        if self.metric is not None:
            metric_named(self.metric)
        if self.granularity == "operator" and self.ablation != "zero":
            raise InputError("operators are cut with zero ablation only", where="ablation", expected="zero",
                             found=self.ablation)
        known = self.meaningful
        for name in SETTINGS:
            if getattr(self, name) is not None and name not in known:
                raise InputError("this search does not have such a setting", where=name, found=getattr(self, name),
                                 expected=f"for the method {self.method}: {', '.join(known) or 'none of its own'}")

    @property
    def meaningful(self) -> list[str]:
        """Those of :data:`SETTINGS` that this search reads."""
        method = signature(METHODS[self.method])
        names = {"corruption"} if self.ablation == "counterfactual" else set()
        if method.return_annotation == "EdgeScores":
            names |= {"select", "by", "threshold" if self.select == "threshold" else "edges"}
        return [name for name in SETTINGS if name in names or name in method.parameters]


@dataclass(frozen=True)
class DenseRecipe(Recipe):
    """How the dense model is trained. Its seed is the run's, and it has no teacher: neither is a flag."""

    seed: tyro.conf.Suppress[int] = 0
    distill_weight: tyro.conf.Suppress[float] = 0.0
    temperature: tyro.conf.Suppress[float] = 1.0


@dataclass(frozen=True)
class SparseRecipe(Recipe):
    """How the sparse model is trained. Its seed is the run's."""

    seed: tyro.conf.Suppress[int] = 0


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
    train: DenseRecipe = field(default_factory=DenseRecipe)
    augment: Augmentation = field(default_factory=Augmentation)
    discover: DiscoverConfig = field(default_factory=DiscoverConfig)
    sparsify: SparsifyConfig = field(default_factory=SparsifyConfig)
    finetune: SparseRecipe = field(default_factory=SparseRecipe)
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


def load_config(preset: str | None = None, file: str | Path | None = None, *, method: str | None = None) -> Config:
    """The configuration of ``preset`` (or the one that ``file`` names, or ``digits``) with ``file`` over it.

    What the preset sets for its own method of discovery goes when ``method`` or the file names another one. Raises
    :class:`InputError` naming file and field for keys that do not exist, values of a wrong type or out of range.
    """
    given = {} if file is None else read_yaml(file)
    preset = preset or given.get("preset") or Config.preset
    if preset not in PRESETS:
        raise InputError("there is no such preset", where="preset", expected=", ".join(PRESETS), found=repr(preset),
                         remedy=nearest(preset, PRESETS))
    values, searched = PRESETS[preset], given.get("discover")
    method = method or (searched.get("method") if isinstance(searched, Mapping) else None)
    if method not in (None, DiscoverConfig.method):
        kept = {key: value for key, value in values["discover"].items() if key not in SETTINGS}
        values = {**values, "discover": kept}
    return checked(merge(values, {**given, "preset": preset}), where=file or f"preset {preset}")


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
