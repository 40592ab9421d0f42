"""``vitsparse bench``: how fast models run on this machine, and how fast their plans are predicted to be."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn

from ..circuit import Circuit, Graph
from ..circuit.files import write_json
from ..compiler import SparseViT, sparsify
from ..compiler.cost import CostModel, default_file
from ..compiler.cost_check import check_predictions, median_errors
from ..compiler.cost_table import CIRCUITS, QUICK, measure_cost
from ..errors import InputError
from ..evaluation.ablation import Ablation
from ..evaluation.baselines import BASELINES
from ..evaluation.latency import machine_facts, measure
from ..model.config import ViTConfig
from ..model.vit import ViT
from .config import BenchConfig, Config, SparsifyConfig
from .flags import Common, parse
from .shared import begin, device_of, load_model

FORMAT, VERSION, RESULTS_FILE = "vitsparse.bench", 1, "bench.json"
BASELINE = "(dense)"  # what rows of the baselines are called
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Latency of models beside the strongest dense baselines, measured and predicted: bench.json.

    On a machine that does nothing else: whatever runs beside ends up in the numbers.
    """

    models: tyro.conf.Positional[tuple[Path, ...]] = ()
    """folders of dense or sparse models, each timed at every batch size, all of one shape taking turns"""
    calibrate: bool = False
    """first measure what plans are made of: the cost table of this machine"""
    quick: bool = False
    """calibrate on few circuits"""
    check: bool = False
    """then compare predictions with measurements on random circuits: half of them of random shapes, half of a model of
    12 layers, width 256 and 65 tokens"""
    circuits: int = 30
    """how many circuits to check"""
    cost: Path | None = None
    """cost table to predict from, and to write when calibrating (default: one for each number of threads, in the
    user's cache folder)"""
    threads: int | None = None
    """threads that a program may use (default: as many as torch takes)"""
    sparsify: SparsifyConfig
    bench: BenchConfig


def main(argv: Sequence[str]) -> int:
    """Calibrate, check and time, whatever was asked for."""
    flags, config = parse(Flags, argv)
    if not (flags.models or flags.calibrate or flags.check):
        raise InputError("there is nothing to measure", where="bench",
                         expected="folders of models, --calibrate or --check")
    for name, value in (("circuits", flags.circuits), ("threads", flags.threads)):
        if value is not None and value < 1:
            raise InputError("a number must be positive", where=f"--{name}", expected="at least 1", found=value)
    file, folders = flags.cost or default_file(flags.threads or torch.get_num_threads()), named(flags.models)
    if not (flags.calibrate or file.exists()) and (flags.check or flags.cost):
        raise InputError("there is no such cost table", where=file, remedy="measure this machine with --calibrate")
    out = begin(config, "bench", files=tuple(folders.values()))
    with threads(flags.threads):
        table = _table(flags, file)
        results = {"format": FORMAT, "version": VERSION, "machine": machine_facts(),
                   "cost": str(file) if table else None, "rows": [], "notes": [], "check": []}
        if flags.check:
            results["check"] = check(table, config, flags.circuits)
        if folders:
            results["rows"], results["notes"] = time_models(config, folders, table)
            print("\n".join([*_lines(results["rows"]), *results["notes"]]))
    write_json(out / RESULTS_FILE, results)
    return 0


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch, and with it our programs, use so many threads for a while; None: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _table(flags: Flags, file: Path) -> CostModel | None:
    """The table to predict from: measured now, or that in ``file``; None where nobody has measured one."""
    if flags.calibrate:
        measure_cost(circuits=QUICK if flags.quick else CIRCUITS).save(file)
        print(f"cost table -> {file}")
    elif not file.exists():
        return None
    table = CostModel.load(file)
    if table.threads != torch.get_num_threads():
        raise InputError("the cost table is for another number of threads", where=file, found=table.threads,
                         expected=torch.get_num_threads(), remedy=f"--threads {table.threads}, or --calibrate")
    return table


def check(table: CostModel, config: Config, circuits: int) -> list[Row]:
    """Predicted and measured latencies of random circuits, printed as they come."""
    rows = []
    for row in check_predictions(table, circuits, batches=config.bench.batches, seed=config.seed,
                                 min_seconds=config.bench.min_seconds / 2):
        rows.append(row)
        predicted, measured = row["predicted_us"], row["measured_us"]
        print(f"batch {row['batch']:3}: measured {measured:10.0f} us, predicted {predicted:10.0f} us "
              f"({predicted / measured - 1:+4.0%})  {row['circuit']}", flush=True)
    for batch, error in median_errors(rows).items():
        print(f"batch {batch}: median error {error:.1%} over {circuits} circuits")
    return rows


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """Models by the names of their folders, which must differ."""
    found: dict[str, Path] = {}
    for folder in folders:
        name = os.path.basename(os.path.abspath(folder))
        if name in found:
            raise InputError("two models would have the same name", where=folder, expected="folders of different names",
                             found=f"{name!r}, which is {found[name]}", remedy="rename one, or use a symbolic link")
        found[name] = folder
    return found


def shape_of(model: ViT | SparseViT) -> ViTConfig:
    """The configuration without what plays no part at inference."""
    rates = {name: 0.0 for name in model.config.to_dict() if name.endswith("_rate")}
    return replace(model.config, **rates)


def time_models(config: Config, folders: Mapping[str, Path], table: CostModel | None) -> tuple[list[Row], list[str]]:
    """Rows of all models and baselines, and notes on what had to be left out. Those of one shape take turns."""
    models = {name: load_model(folder, config).eval() for name, folder in folders.items()}
    rows, notes = [], []
    for shape in dict.fromkeys(map(shape_of, models.values())):
        alike = {name: model for name, model in models.items() if shape_of(model) == shape}
        # How long a model takes does not depend on its weights.
        dense = next((model for model in alike.values() if isinstance(model, ViT)), ViT(**shape.to_dict()))
        sparse = {name: _compiled(model, config) for name, model in alike.items()}
        for batch in config.bench.batches:
            rows += _rows(config, dense.eval().to(device_of(config)), sparse, batch, notes, table)
    return rows, notes


def _compiled(model: ViT | SparseViT, config: Config) -> SparseViT:
    """A dense model as the circuit of all its edges."""
    if isinstance(model, SparseViT):
        return model
    graph = Graph.of(model, granularity="layer")
    return sparsify(model, Circuit.full(graph), ablation=Ablation.zero(model, graph),
                    backend=config.sparsify.backend).eval()


@torch.inference_mode()
def _rows(config: Config, dense: ViT, models: Mapping[str, SparseViT], batch: int, notes: list[str],
          table: CostModel | None) -> list[Row]:
    c, device = dense.config, device_of(config)
    images = torch.randn(batch, c.in_chans, c.img_size, c.img_size, device=device)
    candidates: dict[tuple[str, str], Any] = {}
    for name in config.bench.baselines:
        try:
            candidates[BASELINE, name] = BASELINES[name](dense, images)
        except InputError as error:
            note = f"{name}: left out, {': '.join(filter(None, (error.what, str(error.found or ''))))}"
            if note not in notes:
                notes.append(note)
    candidates |= {(name, model.chosen_backend): functools.partial(model, images) for name, model in models.items()}
    found = measure(candidates, repeats=config.bench.repeats, min_seconds=config.bench.min_seconds, device=device)
    strongest = min((latency.p50 for (name, _), latency in found.items() if name == BASELINE), default=None)
    shape = f"{c.num_tokens}x{c.embed_dim}, {c.depth} layers of {c.num_heads} heads"
    return [{"shape": shape, "batch": batch, "model": name, "backend": backend, "latency_ms": asdict(latency),
             "speedup": strongest and strongest / latency.p50,
             "predicted_ms": _predicted(table, models.get(name), backend, batch)}
            for (name, backend), latency in found.items()]


def _predicted(table: CostModel | None, model: nn.Module | None, backend: str, batch: int) -> float | None:
    """Milliseconds, where there is a table for what runs."""
    return table.plan(model.plan, batch) / 1e3 if table and model and backend == "cpu" else None


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    """The rows for a person; ratios say how many times as fast as the strongest dense baseline."""
    width = max(len(f"{row['model']} {row['backend']}") for row in rows)
    for (shape, batch), group in groupby(rows, key=lambda row: (row["shape"], row["batch"])):
        yield f"{shape}, batch {batch}; ms: p50 [p20, p80]"
        for row in group:
            name, ms = f"{row['model']} {row['backend']}", row["latency_ms"]
            ratio = f"  {row['speedup']:6.2f} times as fast" if row["speedup"] else ""
            predicted = f", predicted {row['predicted_ms']:.3f}" if row["predicted_ms"] else ""
            yield f"  {name:{width}} {ms['p50']:9.3f} [{ms['p20']:.3f}, {ms['p80']:.3f}]{ratio}{predicted}"
