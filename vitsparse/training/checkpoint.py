"""Checkpoints that are always whole: tensors as safetensors, the rest as JSON, swapped in as one unit.

::

    <folder>/latest.json              {"folder": "step-00001234", "sha256": of its state.json}
    <folder>/step-00001234/model.safetensors, optimizer.safetensors, state.json

A new checkpoint is written beside the old one under a temporary name, flushed, renamed, and only then named by
``latest.json``, itself replaced atomically. Killed at any moment, or on a full disk, ``latest.json`` names a complete
folder. ``state.json`` holds the sha256 of the tensor files, so damage anywhere is found before anything is used.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..circuit.files import atomic_path, existing, read_json, sha256_of, write_json
from ..errors import InputError

FORMAT, VERSION = "vitsparse.checkpoint", 1
POINTER, STATE = "latest.json", "state.json"
_TENSOR_FILES = ("model", "optimizer")


@dataclass(frozen=True)
class Checkpoint:
    """``model`` and ``optimizer``: tensors by name; ``state``: all else, as JSON values; ``path``: its folder."""

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]
    path: Path | None = None


def save_checkpoint(folder: Path, checkpoint: Checkpoint, step: int) -> Path:
    """Make ``checkpoint`` the latest one in ``folder`` and remove older ones; returns its path.

    Raises :class:`InputError` when it cannot be written, as on a full disk: then the one before is still the latest.
    """
    target = folder / f"step-{step:08d}"
    if latest_checkpoint(folder) == target:
        raise InputError("the latest checkpoint is already of this step", where=target)
    temporary = folder / f".{target.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(temporary, checkpoint)
        if target.exists():
            shutil.rmtree(target)  # left by a run that was killed before it could name it the latest
        os.replace(temporary, target)
        write_json(folder / POINTER, {"folder": target.name, "sha256": sha256_of(target / STATE)})
    except (OSError, SafetensorError) as error:
        for unnamed in (temporary, target):  # the room they take is what is missing
            shutil.rmtree(unnamed, ignore_errors=True)
        before = latest_checkpoint(folder)
        raise InputError("the checkpoint could not be written", where=target, found=error,
                         remedy=f"make room and resume; {before} is intact" if before else "make room and start again",
                         ) from error
    for entry in folder.iterdir():
        if entry.name not in (POINTER, target.name):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return target


def clear_checkpoints(folder: Path) -> None:
    """Remove all checkpoints; the pointer first, so that a kill in between leaves none rather than half of one."""
    (folder / POINTER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The path of the latest complete checkpoint in ``folder``, or None."""
    return existing(folder / _read_pointer(folder)["folder"]) if (folder / POINTER).exists() else None


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Read and check the latest checkpoint in ``folder``; None when there is none."""
    path = latest_checkpoint(folder)
    if path is None:
        return None
    _check_digest(path / STATE, _read_pointer(folder).get("sha256"))
    state = read_json(path / STATE)
    if (state.get("format"), state.get("version")) != (FORMAT, VERSION):
        raise InputError("not a checkpoint of this version", where=path / STATE, expected=f"{FORMAT} version {VERSION}",
                         found=f"{state.get('format')} version {state.get('version')}")
    tensors = {}
    for name in _TENSOR_FILES:
        file = path / f"{name}.safetensors"
        _check_digest(file, state["sha256"][name])
        tensors[name] = load_file(file)
    return Checkpoint(tensors["model"], tensors["optimizer"], state, path)


def describe_model(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint's model must share with the one it is loaded into: class, configuration, circuit, tensors.

    Weights are not part of it: training changes them.
    """
    config, circuit = getattr(model, "config", None), getattr(model, "circuit", None)
    return {
        "class": type(model).__name__,
        "config": config.to_dict() if hasattr(config, "to_dict") else None,
        "kept_edges": _short(circuit.kept) if hasattr(circuit, "kept") else None,
        "tensors": {name: [str(tensor.dtype).removeprefix("torch."), *tensor.shape]
                    for name, tensor in model_tensors(model).items()},
    }


def _short(names: tuple[str, ...]) -> str:
    """A list of names, told from others in one line."""
    return f"{len(names)} edges, sha256 {hashlib.sha256(' '.join(names).encode()).hexdigest()[:16]}"


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name: the model's own storage, not copies."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def optimizer_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state by ``<field>/<parameter name>``, so that it does not hang on the parameters' order."""
    return {f"{field}/{name}": value for name, parameter in model.named_parameters() for optimizer in optimizers
            for field, value in optimizer.state.get(parameter, {}).items()}


def restore(checkpoint: Checkpoint, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Copy the checkpoint's tensors into ``model``, which must fit (:func:`describe_model`), and ``optimizers``."""
    model.load_state_dict(checkpoint.model)  # and not tensor by tensor: a module may have to hear of it
    parameters = dict(model.named_parameters())
    owner = {parameter: (optimizer, group) for optimizer in optimizers for group in optimizer.param_groups
             for parameter in group["params"]}
    for optimizer in optimizers:
        optimizer.state.clear()
    for key, value in checkpoint.optimizer.items():
        field, name = key.split("/", 1)
        parameter = parameters[name]
        optimizer, group = owner[parameter]
        # Step counts are kept on the CPU where a step need not be recorded, moments beside their parameter.
        home = "cpu" if field == "step" and not group.get("capturable") else parameter.device
        optimizer.state[parameter][field] = value.to(home, copy=True)


def first_difference(saved: Any, current: Any, name: str) -> tuple[str, Any, Any] | None:
    """The first field, depth first, in which two JSON values differ: (dotted name, saved, current), or None."""
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        for key in [*current, *(key for key in saved if key not in current)]:
            found = first_difference(saved.get(key), current.get(key), f"{name}.{key}")
            if found:
                return found
        return None
    if isinstance(saved, list) and isinstance(current, list) and len(saved) == len(current):
        pairs = zip(saved, current, strict=True)
        return next(filter(None, (first_difference(a, b, f"{name}[{i}]") for i, (a, b) in enumerate(pairs))), None)
    return None if saved == current else (name, saved, current)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    digests = {}
    for name, tensors in zip(_TENSOR_FILES, (checkpoint.model, checkpoint.optimizer), strict=True):
        file = folder / f"{name}.safetensors"
        # Copies: the format refuses tensors that share storage, such as tied weights.
        copies = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
        with atomic_path(file) as temporary:
            save_file(copies, temporary)
        digests[name] = sha256_of(file)
    state = {"format": FORMAT, "version": VERSION, "sha256": digests, **checkpoint.state}
    write_json(folder / STATE, state, indent=None)


def _read_pointer(folder: Path) -> dict[str, str]:
    pointer = read_json(folder / POINTER)
    name = pointer.get("folder") if isinstance(pointer, dict) else None
    if not isinstance(name, str) or not re.fullmatch(r"step-\d+", name):
        raise InputError("the pointer to the latest checkpoint is damaged", where=folder / POINTER,
                         expected='{"folder": "step-<number>", ...}', found=pointer)
    return pointer


def _check_digest(file: Path, expected: str | None) -> None:
    found = sha256_of(file)
    if found != expected:
        raise InputError("a file of the checkpoint is damaged", where=file, expected=f"sha256 {expected}",
                         found=f"sha256 {found}", remedy="restore it from a copy or train anew")
