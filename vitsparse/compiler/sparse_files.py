"""A SparseViT as a folder: the plan, the sliced weights with the folded constants, and the circuit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..circuit.circuit import Circuit
from ..circuit.files import read_json, sha256_of, write_bytes, write_json
from ..errors import InputError
from ..model.weights import read_weights, storable
from .plan import Plan
from .plan_check import check_loaded
from .plan_file import plan_from_dict, plan_to_dict

FORMAT, VERSION = "vitsparse.sparse_vit", 1
CONFIG_FILE, WEIGHTS_FILE, CIRCUIT_FILE = "config.json", "model.safetensors", "circuit.json"
CONSTANTS = "constants:"  # prefix that tells a folded constant from a parameter


def save_sparse(folder: str | Path, plan: Plan, parameters: Mapping[str, Tensor], circuit: Circuit,
                backend: str, dtype: torch.dtype | None = None) -> None:
    """Write the three files, each atomically; the last names the digests of the others, so that none is mixed up.

    ``dtype`` is that of the numbers in the file, see :func:`vitsparse.model.weights.storable`.
    """
    folder = Path(folder)
    tensors = {**parameters, **{CONSTANTS + name: value for name, value in plan.constants.items()}}
    data = save(storable(tensors, dtype, where=folder / WEIGHTS_FILE), {"format": "pt"})
    write_bytes(folder / WEIGHTS_FILE, data)
    circuit.save(folder / CIRCUIT_FILE)
    digests = {name: sha256_of(folder / name) for name in (WEIGHTS_FILE, CIRCUIT_FILE)}
    write_json(folder / CONFIG_FILE, {"format": FORMAT, "version": VERSION, "architecture": "sparse_vit",
                                      "backend": backend, "sha256": digests, "plan": plan_to_dict(plan)})


def load_sparse(folder: str | Path, dtype: torch.dtype) -> tuple[Plan, dict[str, Tensor], Circuit, str]:
    """(front plan, parameters, circuit, backend) from a folder; every complaint names file and field.

    Parameters and constants are of ``dtype``, whatever they are in the file.
    """
    folder = Path(folder)
    path, weights, circuit_file = (folder / name for name in (CONFIG_FILE, WEIGHTS_FILE, CIRCUIT_FILE))
    data = read_json(path)
    if not isinstance(data, dict) or (data.get("format"), data.get("version")) != (FORMAT, VERSION):
        fields = data if isinstance(data, dict) else {}
        dense = fields.get("architecture") == "vit"
        raise InputError("not a saved SparseViT of this version", where=path, expected=f"{FORMAT} version {VERSION}",
                         found=f"{fields.get('format')} version {fields.get('version')}",
                         remedy="give the folder of a sparse model; this one holds a dense model, which sparsify makes "
                                "sparse" if dense else "")
    for field, kind in (("plan", dict), ("backend", str), ("sha256", dict)):
        if not isinstance(data.get(field), kind):
            raise InputError("a field is missing or damaged", where=f"{path}: {field}", expected=kind.__name__,
                             found=repr(data.get(field)))
    # What was read is a view of the file, which may change or shrink while the model lives, at addresses even or odd.
    # Integers stay what they are, to be refused.
    tensors = {key: value.to(dtype if value.is_floating_point() else value.dtype, copy=True)
               for key, value in read_weights(weights)[0].items()}
    constants = {key.removeprefix(CONSTANTS): value for key, value in tensors.items() if key.startswith(CONSTANTS)}
    parameters = {key: value for key, value in tensors.items() if not key.startswith(CONSTANTS)}
    circuit = Circuit.load(circuit_file)
    plan = plan_from_dict(data["plan"], constants, where=path)
    check_loaded(plan, parameters, circuit.graph, plan_file=path, weights_file=weights)
    for file in (weights, circuit_file):
        if sha256_of(file) != data["sha256"].get(file.name):
            raise InputError("the files in the folder were not written together", where=file,
                             expected=f"sha256 {data['sha256'].get(file.name)}", found=f"sha256 {sha256_of(file)}",
                             remedy="save the model again")
    in_order = {key: parameters[key] for key in plan.parameters}  # optimisers number parameters by their order
    return plan, in_order, circuit, data["backend"]
