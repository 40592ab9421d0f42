"""Models by name. A name says the whole architecture, so there is nothing to register:

    vit_{data set}_p{patch}_d{width}_l{layers}_h{heads}    vit_tiny_imagenet_p8_d256_l12_h8
    vit_{tiny|small|base|large}_patch{patch}_{image}       vit_tiny_patch16_224, as in timm
    {one of these}.{tag}                                   trained weights of it, see :mod:`.pretrained`
    local-dir:{folder}                                     a folder written by save_pretrained, dense or sparse
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from ..circuit.files import read_json
from ..errors import InputError, nearest
from . import pretrained as index
from .config import ViTConfig
from .vit import ViT
from .weights import CONFIG_FILE, build, check_same_function, load_pretrained, read_weights

MODELS = (
    "vit_base_patch16_224",
    "vit_digits_p2_d64_l6_h4",
    "vit_small_patch16_224",
    "vit_tiny_imagenet_p8_d128_l6_h4",
    "vit_tiny_imagenet_p8_d256_l12_h8",
    "vit_tiny_patch16_224",
)
LOADERS: dict[str, Callable[..., nn.Module]] = {"vit": load_pretrained}
"""What opens a saved folder, by the architecture in its ``config.json``; floors above put theirs in."""

_DATA_SETS = {
    "digits": {"img_size": 8, "in_chans": 1, "num_classes": 10},
    "imagenet": {"img_size": 224, "in_chans": 3, "num_classes": 1000},
    "tiny_imagenet": {"img_size": 64, "in_chans": 3, "num_classes": 200},
}
_SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
_BY_DATA_SET = re.compile(
    r"vit_(?P<tag>\w+)_p(?P<patch_size>\d+)_d(?P<embed_dim>\d+)_l(?P<depth>\d+)_h(?P<num_heads>\d+)", re.ASCII)
_BY_SIZE = re.compile(r"vit_(?P<tag>[a-z]+)_patch(?P<patch_size>\d+)_(?P<img_size>\d+)", re.ASCII)


def create_model(name: str, pretrained: bool = False, checkpoint_path: str = "", *,
                 weights: str | os.PathLike | None = None, **overrides: Any) -> nn.Module:
    """A model by name (see the module), with timm's arguments: a ViT, or a sparse one where that was saved.

    With ``pretrained`` it has the trained weights of that name, float32 unless ``dtype`` is given; ``weights`` is the
    folder or https URL that holds them (:mod:`.pretrained` says where else they are looked for). ``checkpoint_path``
    is a safetensors file with timm's keys; without ``num_classes`` the model gets as many classes as the file has.
    ``overrides`` are fields of :class:`ViTConfig`, ``device`` and ``dtype``; ``None`` keeps what the name or the saved
    model says. Raises :class:`InputError` for an unknown name, argument or source and for weights of another model.
    """
    overrides = {key: value for key, value in overrides.items() if value is not None}
    factory = {key: overrides.pop(key) for key in ("device", "dtype") if key in overrides}
    source, is_source, place = name.partition(":")
    if weights is not None and (is_source or not pretrained):
        raise InputError("weights= says where pretrained weights are", where="weights", found=weights,
                         expected="a name with pretrained=True", remedy="a file is given with checkpoint_path=, a "
                                                                        "folder of your own as local-dir:FOLDER")
    if checkpoint_path and (is_source or pretrained):
        raise InputError("the model brings its own weights", where="checkpoint_path", expected="no other weights",
                         found=checkpoint_path)
    if is_source:
        if source != "local-dir":
            raise InputError(f"unknown source of models {source!r}", where=name, expected="local-dir:FOLDER",
                             remedy=nearest(source, ["local-dir"]))
        return open_folder(place, **factory, **overrides)
    if pretrained:
        return open_folder(index.fetch(*index.find(name), weights), **factory, **overrides)
    arguments = {**_arguments(name, overrides), **overrides}
    if not checkpoint_path:
        return ViT(**factory, **arguments)
    state, saved = read_weights(checkpoint_path)
    if "num_classes" not in overrides:
        head = state.get("head.weight")
        arguments["num_classes"] = 0 if head is None else len(head)
    config = ViTConfig.from_dict(arguments, where=name)
    if saved is not None:
        check_same_function(config, saved, where=checkpoint_path)
    return build(config, state, where=checkpoint_path, **factory)


def list_models(filter: str = "*", pretrained: bool = False) -> list[str]:
    """The names of ready-made models that match ``filter`` (wildcards ``*`` and ``?``), sorted.

    With ``pretrained`` the full names of those with trained weights, tags included.
    """
    return sorted(fnmatch.filter(index.read_index() if pretrained else MODELS, filter))


def open_folder(folder: str | os.PathLike, **arguments: Any) -> nn.Module:
    """The model in a folder of ``save_pretrained``, whichever kind its ``config.json`` names."""
    config = Path(folder) / CONFIG_FILE
    values = read_json(config) if config.is_file() else None
    kind = values.get("architecture") if isinstance(values, dict) else None
    # The loader of dense models explains what is wrong with a folder of no known kind.
    return LOADERS.get(str(kind), load_pretrained)(folder, **arguments)


def _arguments(name: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a name with or without a tag."""
    architecture, dot, _ = name.partition(".")
    if not dot or _is_path(name):
        return parse(name, overrides)
    _, entry = index.find(name)
    if entry.architecture != "vit":
        raise InputError("a sparse model is what its weights make it", where=name, expected="pretrained=True",
                         found="pretrained=False", remedy=f"for the dense one write {architecture!r}")
    arguments = {"num_classes": entry.num_classes, **entry.model_args}
    return {**parse(architecture, {**arguments, **overrides}), **arguments}


def parse(name: str, overrides: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The arguments that a name stands for; ``overrides`` may bring the image size of an unknown data set."""
    if (found := _BY_SIZE.fullmatch(name)) and found["tag"] in _SIZES:
        return {**_SIZES[found["tag"]], **_numbers(found)}
    if found := _BY_DATA_SET.fullmatch(name):
        tag = found["tag"]
        if tag not in _DATA_SETS and "img_size" not in overrides:
            raise InputError(f"{tag!r} is not a known data set, so the image size is unknown", where=name,
                             expected=f"one of {', '.join(_DATA_SETS)}, or img_size=", found=tag,
                             remedy=nearest(tag, _DATA_SETS))
        return {**_DATA_SETS.get(tag, {}), **_numbers(found)}
    raise InputError(f"unknown model {name!r}", where="name", found=name,
                     expected="a name from list_models(), or vit_DATASET_p#_d#_l#_h#, or vit_SIZE_patch#_#",
                     remedy=f"for a folder write 'local-dir:{name}'" if _is_path(name) else nearest(name, MODELS))


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name


def _numbers(found: re.Match[str]) -> dict[str, int]:
    return {key: int(value) for key, value in found.groupdict().items() if key != "tag"}
