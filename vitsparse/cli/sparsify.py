"""``vitsparse sparsify``: a dense model and its circuit in, a sparse model out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..circuit import Circuit
from ..circuit.files import write_text
from ..compiler import sparsify as compile_circuit
from ..compiler.explain import explain
from ..evaluation.ablation import Ablation
from .config import Config, SparsifyConfig
from .discover import ABLATION_FILE
from .flags import Common, parse
from .shared import begin, load_dense

EXPLAIN_FILE = "explain.txt"


@dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Compile a circuit into a sparse model, and print the plan that it runs."""

    dense: tyro.conf.Positional[Path]
    """folder of the dense model"""
    circuit: tyro.conf.Positional[Path]
    """circuit.json"""
    ablation: Path | None = None
    """ablation.safetensors (default: beside the circuit)"""
    explain: bool = False
    """print what each pass of the compiler did, and write the plan after each, whole, as explain.txt"""
    sparsify: SparsifyConfig


def main(argv: Sequence[str]) -> int:
    """Compile into the output folder."""
    flags, config = parse(Flags, argv, dense=tyro.MISSING, circuit=tyro.MISSING)
    out = begin(config, "sparsify", files=(flags.circuit, flags.dense, flags.ablation))
    sparsify(config, flags.dense, flags.circuit, out, ablation_file=flags.ablation, explained=flags.explain)
    return 0


def sparsify(config: Config, model_folder: Path, circuit_file: Path, out: Path, *,
             ablation_file: Path | None = None, explained: bool = False) -> None:
    """Write the sparse model into ``out``, with its plan as ``plan.txt`` (and how it came about as ``explain.txt``)."""
    circuit = Circuit.load(circuit_file)
    ablation = Ablation.load(ablation_file or Path(circuit_file).parent / ABLATION_FILE)
    dense = load_dense(model_folder, config)
    sparse = compile_circuit(dense, circuit, ablation=ablation, backend=config.sparsify.backend)
    sparse.save_pretrained(out)
    if explained:
        explanation = explain(dense, circuit, ablation=ablation)
        write_text(out / EXPLAIN_FILE, f"{explanation.full()}\n")
        print(f"{explanation}\n\neach plan whole: {out / EXPLAIN_FILE}\n")
    write_text(out / "plan.txt", f"{sparse.plan}\n")
    print(sparse.plan)
    print(f"{circuit} -> {out}")
