"""``vitsparse export``: a dense or sparse model in, a file for another runtime out, checked by running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..compiler.export import export
from ..compiler.export_formats import FORMATS
from .flags import Common, parse
from .shared import load_model


@dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Write a model for ONNX Runtime, OpenVINO or torch.export, on standard operators alone, in float32.

    The file is run at once and compared with the definition in float64; what fails is not left behind. It holds no
    pickle, but whoever loads a .pt2 with torch.export.load trusts its author: torch would run a pickle put into it.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """folder of the model, dense or sparse"""
    format: Literal["onnx", "openvino", "torch-export"] = "onnx"
    """onnx: FILE.onnx; openvino: FILE.xml with FILE.bin; torch-export: FILE.pt2"""
    batch: int = 1
    """images in a batch, fixed in the file: runtimes are faster for it"""
    dynamic_batch: bool = False
    """any number of images instead"""
    out: Path
    """file to write, or a folder for one called model"""


def main(argv: Sequence[str]) -> int:
    """Export one model."""
    flags, config = parse(Flags, argv, folder=tyro.MISSING)
    model = load_model(flags.folder, config)
    named = flags.out.suffix and not flags.out.is_dir()
    file = flags.out if named else flags.out / f"model{FORMATS[flags.format].endings[0]}"
    print(export(model, file, flags.format, batch=flags.batch, dynamic_batch=flags.dynamic_batch, seed=config.seed))
    return 0
