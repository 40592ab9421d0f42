"""The portable road: a model as a file that other runtimes run, on standard operators alone.

The ``torch`` backend is traced with ``torch.export`` and written as ONNX, OpenVINO's IR or torch.export's archive.
Before a file gets its name, its own runtime runs it, and what comes out is compared with the definition in float64.
"""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..backends import reference
from ..circuit.files import atomic_path, sha256_of
from ..errors import InputError, nearest
from ..model.vit import ViT
from ..version import __version__
from .execute import run_plan
from .export_formats import FORMATS, Format, Run, check_standard
from .sparse_vit import SparseViT
from .translate import append_head

TOLERANCE = 1e-4  # max |difference| / max |logit| against float64
LEAST_IMAGES = 4


@dataclass(frozen=True)
class Exported:
    """What was written, and how it did: ``error`` is max |difference| / max |logit| over ``images`` images."""

    file: Path
    format: str
    shape: tuple[int, ...]  # of the images; -1: any batch
    classes: int
    bytes: int
    ran_under: str
    images: int
    error: float

    def __str__(self) -> str:
        version, batch = FORMATS[self.format].version, "any" if self.shape[0] == -1 else self.shape[0]
        return (f"{self.file}: {self.format}{f', {version}' if version else ''}, float32, images "
                f"[{batch}, {', '.join(map(str, self.shape[1:]))}] -> logits [{batch}, {self.classes}], "
                f"{self.bytes / 2**20:.2f} MiB\n{self.ran_under} ran it on {self.images} images: error "
                f"{self.error:.1e} of the largest logit, at most {TOLERANCE:.0e}")


def export(model: ViT | SparseViT, file: str | Path, format: str, *, batch: int = 1, dynamic_batch: bool = False,
           seed: int = 0) -> Exported:
    """Write ``model`` to ``file`` as ``"onnx"`` (.onnx), ``"openvino"`` (.xml, with a .bin beside it) or
    ``"torch-export"`` (.pt2), in float32, for exactly ``batch`` images or for any number of them.

    A static batch is what runtimes optimise best. ``seed`` draws the images that the file is checked with. Raises
    :class:`InputError` for an unknown format, a missing package, a file that exists or cannot be written, and where
    what the runtime computes is not finite, all zero, or further than :data:`TOLERANCE` from the float64 definition;
    then no file is left behind. How safely the formats load: :mod:`vitsparse.compiler.export_formats`.
    """
    chosen, file = _format(format), Path(file)
    chosen.require()
    if batch < 1:
        raise InputError("a batch holds at least one image", where="batch", expected=">= 1", found=batch)
    shape = (-1 if dynamic_batch else batch, *_image_shape(model))
    sizes = sorted({1, batch, 3}) if dynamic_batch else [batch] * -(-LEAST_IMAGES // batch)
    with _scratch(file, chosen) as folder:
        scratch = folder / file.name
        chosen.write(trace(model, shape), shape, scratch, facts_of(model, folder))
        error = _check(model, chosen.load(scratch), sizes, seed, chosen.runtime)
        parts = [scratch.with_suffix(ending) for ending in chosen.endings]
        size = sum(part.stat().st_size for part in parts)
        for part in reversed(parts):  # the file that was asked for comes last: where it is, all is
            with atomic_path(file.with_name(part.name)) as temporary:
                os.replace(part, temporary)
    return Exported(file, format, shape, model.num_classes, size, chosen.ran_under, sum(sizes), error)


def trace(model: ViT | SparseViT, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """``model`` on the ``torch`` backend, in float32 on the CPU, as a program of aten operators alone."""
    twin = copy.deepcopy(model).to("cpu", torch.float32).eval()
    if isinstance(twin, SparseViT):
        twin.backend = "torch"
    batch, *rest = shape
    dynamic = batch == -1
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    with torch.no_grad():
        program = torch.export.export(twin, (torch.zeros(2 if dynamic else batch, *rest),), dynamic_shapes=shapes)
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    check_standard({str(target) for target in targets if not _is_standard(target)})
    return program


def _is_standard(target: object) -> bool:
    """An aten operator, or Python's own arithmetic on sizes."""
    return target.namespace == "aten" if isinstance(target, torch._ops.OpOverload) else (
        getattr(target, "__module__", "") in ("_operator", "math"))


@torch.no_grad()
def definition(model: ViT | SparseViT, images: Tensor) -> Tensor:
    """Logits [B, num_classes] in float64: of a sparse model by the formulas of its front plan."""
    images = images.double()
    if isinstance(model, ViT):
        return copy.deepcopy(model).to("cpu", torch.float64).eval()(images)
    plan = append_head(model._front)
    parameters, constants = ({name: value.detach().to("cpu", torch.float64) for name, value in values.items()}
                             for values in (model._live_parameters("export"), plan.constants))
    return run_plan(plan, images, parameters, constants, reference)[:, 0]


def facts_of(model: ViT | SparseViT, folder: Path) -> dict[str, str]:
    """What the file says of itself; ``circuit_sha256`` is that of the ``circuit.json``, which goes into ``folder``."""
    facts = {"version": __version__, "torch": torch.__version__, "model": type(model).__name__}
    if isinstance(model, SparseViT):
        model.circuit.save(folder / "circuit.json")
        facts |= {"circuit": repr(model.circuit), "circuit_sha256": sha256_of(folder / "circuit.json")}
    return facts


def _check(model: ViT | SparseViT, run: Run, sizes: list[int], seed: int, runtime: str) -> float:
    """The largest error over batches of ``sizes``; raises where the file cannot be trusted."""
    generator, worst = torch.Generator().manual_seed(seed), 0.0
    for size in sizes:
        images = torch.randn(size, *_image_shape(model), generator=generator)
        expected = _usable(definition(model, images), "the model in float64")
        found = _usable(run(images), runtime).double()
        if found.shape != expected.shape:
            raise InputError("the exported model gives logits of another shape", where=runtime,
                             expected=list(expected.shape), found=list(found.shape))
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    if worst > TOLERANCE:
        raise InputError("the exported model computes something else", where=runtime, expected=f"an error of at most "
                         f"{TOLERANCE:.0e} of the largest logit", found=f"{worst:.1e}", remedy="another format")
    return worst


def _usable(logits: Tensor, where: str) -> Tensor:
    if not logits.isfinite().all():
        raise InputError("the logits are not finite", where=where, expected="numbers", found="NaN or infinity")
    if not logits.any():
        raise InputError("the logits are all zero", where=where, expected="an answer", found="0 for every class",
                         remedy="keep more edges, or train the classifier")
    return logits


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise InputError("there is no such format", where="format", expected=", ".join(FORMATS), found=repr(name),
                         remedy=nearest(name, FORMATS))
    return FORMATS[name]


def _image_shape(model: ViT | SparseViT) -> tuple[int, int, int]:
    return model.config.in_chans, model.config.img_size, model.config.img_size


@contextlib.contextmanager
def _scratch(file: Path, chosen: Format) -> Iterator[Path]:
    """A folder beside ``file``, of nobody else's and gone afterwards; refuses a ``file`` that cannot or must not be."""
    if file.suffix != chosen.endings[0]:
        raise InputError("the file has another format's name", where=file, expected=f"a name in {chosen.endings[0]}",
                         found=file.name)
    for part in (file.with_suffix(ending) for ending in chosen.endings):
        if part.exists() or part.is_symlink():
            raise InputError("the file is there already", where=part, remedy="delete it, or give another name")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.")
    except OSError as error:
        raise InputError("the file cannot be written", where=file, found=error.strerror) from error
    with folder:
        yield Path(folder.name)
