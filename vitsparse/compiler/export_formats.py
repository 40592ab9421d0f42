"""The formats that a traced model is written in: how each is written, and how its own runtime runs the file.

No file holds a pickle. But ``torch.export.load`` unpickles whatever a ``.pt2`` archive from elsewhere asks it to (torch
itself warns of it): load archives of people you trust. Here only those just written are loaded.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..errors import InputError
from ..evaluation.runtimes import import_onnxruntime, import_openvino, require

OPSET = 20  # the first with Gelu, and LayerNormalization is older; ONNX Runtime, OpenVINO and TensorRT 10 read it
MAX_ONNX_BYTES = 2**31 - 2**24  # protobuf ends at 2 GiB; the rest is for the graph
IMAGES, LOGITS, FACTS = "images", "logits", "vitsparse"

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """``write(program, shape, file, facts)`` with the images' shape (-1: any batch) and facts that go into the file;
    ``load(file)`` gives a function from images to logits."""

    endings: tuple[str, ...]  # the first names the file; the others lie beside it
    runtime: str
    packages: tuple[str, ...]  # the first is the runtime's
    write: Callable[[ExportedProgram, tuple[int, ...], Path, Mapping[str, str]], None]
    load: Callable[[Path], Run]
    version: str = ""  # of the format

    @property
    def ran_under(self) -> str:
        """Runtime and version."""
        return f"{self.runtime} {importlib.metadata.version(self.packages[0])}"

    def require(self) -> None:
        """Raise :class:`InputError` where a package is missing."""
        for package in self.packages:
            require(package, "export")


def _write_onnx(program: ExportedProgram, shape: tuple[int, ...], file: Path, facts: Mapping[str, str]) -> None:
    size = sum(value.numel() * value.element_size() for value in (*program.parameters(), *program.buffers()))
    if size > MAX_ONNX_BYTES:
        raise InputError("the weights do not fit into one ONNX file", where="format onnx",
                         expected=f"at most {MAX_ONNX_BYTES} bytes", found=f"{size} bytes",
                         remedy="--format openvino or torch-export, or a smaller circuit")
    shapes = ({0: torch.export.Dim("batch")},) if shape[0] == -1 else None  # for the name alone: the program decides
    made = torch.onnx.export(program, (), dynamo=True, opset_version=OPSET, input_names=[IMAGES],
                             output_names=[LOGITS], dynamic_shapes=shapes, verbose=False)
    model = made.model
    check_standard({f"{node.domain}::{node.op_type}" for node in model.graph.all_nodes() if node.domain}
                   | {str(name) for name in model.functions}
                   | {f"opset {version}" for version in model.opset_imports.values() if version != OPSET})
    model.metadata_props.update({f"{FACTS}.{name}": value for name, value in facts.items()})
    made.save(file, external_data=False)


def _load_onnx(file: Path) -> Run:
    session = import_onnxruntime().InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([LOGITS], {IMAGES: images.numpy()})[0])


def _write_openvino(program: ExportedProgram, shape: tuple[int, ...], file: Path, facts: Mapping[str, str]) -> None:
    ov = import_openvino()
    model = ov.convert_model(program)
    if not model.inputs:  # logits that are the same for every image: the converter has dropped what nobody reads
        model = ov.Model(model.outputs, [ov.opset13.parameter(shape, name=IMAGES)])
    model.reshape(list(shape))
    model.inputs[0].set_names({IMAGES})
    model.outputs[0].set_names({LOGITS})
    model.validate_nodes_and_infer_types()
    kinds = [op.get_type_info() for op in model.get_ops()]
    check_standard({f"{kind.version_id}::{kind.name}" for kind in kinds if not kind.version_id.startswith("opset")})
    for name, value in facts.items():
        model.set_rt_info(value, [FACTS, name])
    ov.save_model(model, file, compress_to_fp16=False)


def _load_openvino(file: Path) -> Run:
    ov = import_openvino()
    compiled = ov.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


def _write_torch(program: ExportedProgram, shape: tuple[int, ...], file: Path, facts: Mapping[str, str]) -> None:
    program.example_inputs = None  # the one part of an archive of plain tensors that torch would pickle
    torch.export.save(program, file, extra_files={f"{FACTS}.json": json.dumps(facts)})


def _load_torch(file: Path) -> Run:
    return torch.no_grad()(torch.export.load(file).module())


def check_standard(foreign: set[str]) -> None:
    """Raise :class:`InputError` if there is anything in ``foreign``: operators that other runtimes do not know."""
    if foreign:
        raise InputError("the export would not run elsewhere", where="export", expected="standard operators only",
                         found=", ".join(sorted(foreign)))


FORMATS = {
    "onnx": Format((".onnx",), "ONNX Runtime", ("onnxruntime", "onnx", "onnxscript"), _write_onnx, _load_onnx,
                   f"opset {OPSET}"),
    "openvino": Format((".xml", ".bin"), "OpenVINO", ("openvino",), _write_openvino, _load_openvino),
    "torch-export": Format((".pt2",), "torch", ("torch",), _write_torch, _load_torch),
}
