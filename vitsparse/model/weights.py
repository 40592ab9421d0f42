"""Weights of a dense ViT in files: strict in what is read, atomic in what is written.

A saved model is a folder with ``config.json`` and ``model.safetensors``; the weights file also carries the
configuration in its metadata (key ``config``, JSON), so that it can be loaded alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..circuit.files import existing, existing_file, in_one_order, read_json, write_bytes, write_json
from ..errors import InputError
from .config import ViTConfig
from .vit import ViT

FORMAT, VERSION = "vitsparse.vit", 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def build(config: ViTConfig, state: Mapping[str, Tensor], *, where: object, device: torch.device | str | None = None,
          dtype: torch.dtype | None = None) -> ViT:
    """A ViT holding copies of the tensors of ``state`` (timm's keys).

    Raises :class:`InputError` listing every key that is missing, unexpected or of another shape, and naming tensors
    that are not finite floating-point numbers.
    """
    # Counted first, so that a file that claims a billion blocks costs nothing.
    blocks = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    if blocks != config.depth:
        raise InputError("the weights belong to a model of another depth", where=where,
                         expected=f"{config.depth} blocks", found=f"{blocks} blocks")
    # On the meta device nothing is drawn or allocated that the given tensors would replace at once.
    model = ViT(**config.to_dict(), device="meta")
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in state.items()}
    problems = [f"missing {key} {list(shape)}" for key, shape in wanted.items() if key not in found]
    problems += [f"unexpected {key} {list(shape)}" for key, shape in found.items() if key not in wanted]
    problems += [f"{key} is {list(found[key])}, expected {list(shape)}" for key, shape in wanted.items()
                 if key in found and found[key] != shape]
    problems += [f"{key} holds {_unusable(tensor)}" for key, tensor in state.items() if _unusable(tensor)]
    if problems:
        more = [f"and {len(problems) - 8} more"] if len(problems) > 8 else []
        raise InputError("the weights do not fit the model", where=where, expected=f"the weights of {config}",
                         found="; ".join(problems[:8] + more), remedy="load them into the model they were saved from")
    dtype = dtype or torch.get_default_dtype()
    copies = {key: tensor.detach().to(device or "cpu", dtype, copy=True) for key, tensor in state.items()}
    model.load_state_dict(copies, strict=True, assign=True)
    return model


def save_pretrained(model: ViT, folder: str | os.PathLike, *, dtype: torch.dtype | None = None) -> None:
    """Write ``config.json`` and ``model.safetensors`` into ``folder``, each atomically; ``dtype`` as in `storable`."""
    folder, arguments = Path(folder), model.config.to_dict()
    state = storable(model.state_dict(), dtype, where=folder / WEIGHTS_FILE)
    data = save(state, {"format": "pt", "config": json.dumps(arguments)})
    write_bytes(folder / WEIGHTS_FILE, in_one_order(data))
    num_classes = arguments.pop("num_classes")
    write_json(folder / CONFIG_FILE, {"format": FORMAT, "version": VERSION, "architecture": "vit",
                                      "num_classes": num_classes, "model_args": arguments})


def storable(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, *, where: object) -> dict[str, Tensor]:
    """The tensors as a file takes them: contiguous, on the CPU, rounded to ``dtype`` (None: each as it is).

    Raises :class:`InputError` naming tensors with numbers that ``dtype`` cannot hold, as float16 beyond 65,504.
    """
    rounded = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in tensors.items()}
    beyond = [key for key, tensor in tensors.items()
              if rounded[key].dtype != tensor.dtype and tensor.isfinite().all() and not rounded[key].isfinite().all()]
    if beyond:
        raise InputError(f"numbers are too large for {dtype}", where=where, found=", ".join(beyond[:8]),
                         expected=f"magnitudes up to {torch.finfo(dtype).max:g}", remedy="save in float32")
    return rounded


def load_pretrained(path: str | os.PathLike, *, device: torch.device | str | None = None,
                    dtype: torch.dtype | None = None, **overrides: Any) -> ViT:
    """A ViT from a folder of :func:`save_pretrained`, or from a safetensors file with a ``config`` in its metadata.

    ``overrides`` may change the rates of dropout and stochastic depth; whatever would change the function computed
    by the saved weights raises :class:`InputError`.
    """
    path = existing(path)
    state, saved = read_weights(path / WEIGHTS_FILE if path.is_dir() else path)
    if path.is_dir():
        saved = _read_config(path / CONFIG_FILE)
    if saved is None:
        raise InputError("the weights do not say what model they belong to", where=path,
                         expected="JSON under the key 'config' in the file's metadata", found="no such key",
                         remedy="name the model: create_model(name, checkpoint_path=...)")
    config = ViTConfig.from_dict({**saved.to_dict(), **overrides}, where=path)
    check_same_function(config, saved, where=path)
    return build(config, state, where=path, device=device, dtype=dtype)


def read_weights(path: str | os.PathLike) -> tuple[dict[str, Tensor], ViTConfig | None]:
    """The tensors of a safetensors file, on the CPU, and the configuration in its metadata if it has one."""
    path = existing_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            state, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError("the file is not a readable safetensors file", where=path, found=str(error),
                         remedy="weights are read from safetensors only; convert or copy the file anew") from error
    if "config" not in metadata:
        return state, None
    try:
        values = json.loads(metadata["config"])
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError("the configuration in the metadata is not valid JSON", where=path, found=str(error)) from error
    return state, ViTConfig.from_dict(values, where=path)


def check_same_function(config: ViTConfig, saved: ViTConfig, *, where: object) -> None:
    """Raise :class:`InputError` where ``config`` asks for another function than the weights were saved from.

    Tensor shapes alone would not show it: they are the same for every number of heads.
    """
    for field in fields(ViTConfig):
        asked, held = getattr(config, field.name), getattr(saved, field.name)
        if field.name == "init_values":  # the value is in the weights; only whether there is LayerScale matters
            asked, held = asked is not None, held is not None
        if asked != held and not field.name.endswith("_rate"):
            remedy = "load them as they are, then model.reset_classifier(n)" if field.name == "num_classes" else ""
            raise InputError(f"the weights belong to a model with another {field.name}", where=where,
                             expected=f"{field.name}={asked}", found=f"{field.name}={held}", remedy=remedy)


def _read_config(path: Path) -> ViTConfig:
    values = read_json(path)
    expected = {"format": FORMAT, "version": VERSION, "architecture": "vit"}
    for name, value in expected.items():
        found = values.get(name) if isinstance(values, dict) else type(values).__name__
        if found != value:
            sparse = isinstance(values, dict) and values.get("architecture") == "sparse_vit"
            raise InputError(f"not the configuration of a dense ViT: {name} differs", where=path,
                             expected=f"{name}: {value!r}", found=repr(found),
                             remedy="give the folder of the dense model; this one holds a sparse model, which "
                                    "SparseViT.from_pretrained reads" if sparse else "")
    arguments = values.get("model_args")
    if not isinstance(arguments, dict) or "num_classes" not in values:
        raise InputError("the configuration is incomplete", where=path, expected="num_classes and model_args",
                         found=", ".join(values))
    return ViTConfig.from_dict({**arguments, "num_classes": values["num_classes"]}, where=path)


def _unusable(tensor: Tensor) -> str:
    if not tensor.is_floating_point():
        return str(tensor.dtype)
    return "" if tensor.is_meta or bool(tensor.isfinite().all()) else "NaN or infinity"
