"""A SparseViT as a folder: the plan, the sliced weights with the folded constants, and the circuit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from torch import Tensor

from ..circuit.circuit import Circuit
from ..circuit.files import read_json, write_bytes, write_json
from ..errors import InputError
from ..model.weights import read_weights
from .plan import Plan, total_length
from .plan_file import plan_from_dict, plan_to_dict

if TYPE_CHECKING:
    from .sparse_vit import SparseViT

FORMAT, VERSION = "vitsparse.sparse_vit", 1
CONFIG_FILE, WEIGHTS_FILE, CIRCUIT_FILE = "config.json", "model.safetensors", "circuit.json"
CONSTANTS = "constants:"  # prefix that tells a folded constant from a parameter


def save_sparse(model: SparseViT, plan: Plan, folder: str | Path) -> None:
    """Write the three files, each atomically."""
    parameters = dict(model.named_parameters())
    if plan.parameters and not parameters:
        raise InputError("the parameters were dropped, only the packed program is left", where="inference_only",
                         remedy="save the model before drop_parameters()")
    tensors = {**parameters, **{CONSTANTS + name: value for name, value in plan.constants.items()}}
    folder = Path(folder)
    data = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, {"format": "pt"})
    write_bytes(folder / WEIGHTS_FILE, data)
    model.circuit.save(folder / CIRCUIT_FILE)
    write_json(folder / CONFIG_FILE, {"format": FORMAT, "version": VERSION, "architecture": "sparse_vit",
                                      "backend": model.backend, "plan": plan_to_dict(plan)})


def load_sparse(folder: str | Path) -> tuple[Plan, dict[str, Tensor], Circuit, str]:
    """(front plan, parameters, circuit, backend) from a folder; every complaint names file and field."""
    folder = Path(folder)
    path = folder / CONFIG_FILE
    data = read_json(path)
    found = (data.get("format"), data.get("version")) if isinstance(data, dict) else type(data).__name__
    if found != (FORMAT, VERSION) or "plan" not in data or not isinstance(data.get("backend"), str):
        raise InputError("not a saved SparseViT of this version", where=path, expected=f"{FORMAT} version {VERSION}",
                         found=found)
    tensors, _ = read_weights(folder / WEIGHTS_FILE)
    constants = {key.removeprefix(CONSTANTS): value for key, value in tensors.items() if key.startswith(CONSTANTS)}
    parameters = {key: value for key, value in tensors.items() if not key.startswith(CONSTANTS)}
    plan = plan_from_dict(data["plan"], constants, where=path)
    _check_parameters(plan, parameters, folder / WEIGHTS_FILE)
    return plan, parameters, Circuit.load(folder / CIRCUIT_FILE), data["backend"]


def _check_parameters(plan: Plan, parameters: dict[str, Tensor], path: Path) -> None:
    missing, extra = set(plan.parameters) - set(parameters), set(parameters) - set(plan.parameters)
    if missing or extra:
        raise InputError("the weights are not those of the plan", where=path, expected=f"missing: {sorted(missing)[:5]}",
                         found=f"unexpected: {sorted(extra)[:5]}")
    for key, slices in plan.parameters.items():
        tensor = parameters[key]
        sizes = tuple(map(total_length, slices))
        if tuple(tensor.shape[: len(sizes)]) != sizes or not tensor.is_floating_point():
            raise InputError("a parameter has the wrong shape", where=f"{path}: {key}", expected=f"float {list(sizes)}",
                             found=f"{tensor.dtype} {list(tensor.shape)}")
    bad = next((key for key, value in parameters.items() if not torch.isfinite(value).all()), None)
    if bad is not None:
        raise InputError("a parameter is not finite", where=f"{path}: {bad}", found="NaN or infinity")
