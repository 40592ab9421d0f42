"""``vitsparse evaluate``: models in, ``results.json`` and the same table as Markdown out."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from ..circuit.files import write_json, write_text
from ..compiler import SparseViT, dense_flops
from ..errors import InputError
from ..evaluation.baselines import BASELINES
from ..evaluation.evaluate import evaluate as judge
from ..evaluation.latency import machine_facts, measure
from ..report import results_table
from .config import BenchConfig, Config, DataConfig, SparsifyConfig
from .flags import Common, parse
from .shared import begin, check_classes, device_of, eval_batches, load_dense, load_model

FORMAT, VERSION = "vitsparse.results", 1
Latencies = dict[str, dict[str, dict[str, dict[str, float]]]]


@dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Accuracy, loss, KL, FLOPs and latency of models, measured in one run: results.json and results.md."""

    models: tyro.conf.Positional[tuple[Path, ...]] = ()
    """folders of sparse models; each row has the name of its folder"""
    dense: Path
    """folder of the dense model: the first row, and what KL is measured from"""
    data: DataConfig
    sparsify: SparsifyConfig
    bench: BenchConfig


def main(argv: Sequence[str]) -> int:
    """Measure and write into the output folder."""
    flags, config = parse(Flags, argv, dense=tyro.MISSING)
    folders = row_names(flags.dense, flags.models)
    evaluate(config, folders, begin(config, "evaluate", splits=("test",), files=tuple(folders.values())))
    return 0


def row_names(dense: Path, models: Sequence[Path]) -> dict[str, Path]:
    """Row name -> folder: ``dense``, and the other models by the names of their folders, which must differ."""
    folders = {"dense": dense}
    for folder in models:
        name = os.path.basename(os.path.abspath(folder))  # a symbolic link keeps its own name
        if name in folders:
            raise InputError("two rows of the table would have the same name", where=folder,
                             expected="folders of different names, none of them called dense",
                             found=f"{name!r}, which is {folders[name]}", remedy="rename one, or use a symbolic link")
        folders[name] = folder
    return folders


def evaluate(config: Config, folders: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Measure the models in ``folders`` (row name -> folder, ``dense`` among them); the results go into ``out``."""
    batches = eval_batches(config, "test")
    dense = load_dense(folders["dense"], config)
    models = {name: dense if name == "dense" else load_model(folder, config) for name, folder in folders.items()}
    for name, model in models.items():
        check_classes(model, batches.image_set, folders[name])
    rows = {name: {**_quality(model, batches, dense), **_size(model, models)} for name, model in models.items()}
    latencies, notes = _latencies(config, models, next(iter(batches))[0])
    for name, row in rows.items():
        row["latency_ms"] = latencies[name]
    results = {"format": FORMAT, "version": VERSION, "data": batches.image_set.name, "images": batches.num_images,
               "rows": rows, "notes": notes, "machine": machine_facts()}
    write_json(out / "results.json", results)
    table = results_table(results)
    write_text(out / "results.md", table)
    print(table)
    return results


def _quality(model: nn.Module, batches: Any, dense: nn.Module) -> dict[str, float | None]:
    found = judge(model, batches, dense=dense).as_dict()
    return {name: found[name] for name in ("accuracy", "loss", "kl")}


def _size(model: nn.Module, models: Mapping[str, nn.Module]) -> dict[str, int]:
    """Edges, nodes and FLOPs; those of the dense model are counted in the graph of the circuits beside it."""
    if isinstance(model, SparseViT):
        circuit, flops = model.circuit, model.plan.flops
        dead, constant = len(circuit.dead), len(circuit.constant)
        return {"edges_kept": circuit.num_kept, "edges": circuit.graph.num_edges, "nodes_dead": dead,
                "nodes_constant": constant, "nodes": len(circuit.graph.senders), "flops": flops}
    sparse = next((other for other in models.values() if isinstance(other, SparseViT)), None)
    if sparse is None:
        raise InputError("there is nothing to compare the dense model with", where="models",
                         expected="the folder of at least one sparse model")
    graph = sparse.circuit.graph
    return {"edges_kept": graph.num_edges, "edges": graph.num_edges, "nodes_dead": 0, "nodes_constant": 0,
            "nodes": len(graph.senders), "flops": dense_flops(model.config)}


@torch.inference_mode()
def _latencies(config: Config, models: Mapping[str, nn.Module], images: Tensor) -> tuple[Latencies, list[str]]:
    """{row: {batch size: {backend: quantiles in ms}}} and what had to be left out; all candidates take turns."""
    settings, notes = config.bench, []
    found: Latencies = {name: {} for name in models}
    for batch in settings.batches:
        inputs = images[torch.arange(batch, device=images.device) % len(images)].contiguous()
        candidates = {(name, model.chosen_backend): functools.partial(model.eval(), inputs)
                      for name, model in models.items() if isinstance(model, SparseViT)}
        for baseline in settings.baselines:
            try:
                candidates["dense", baseline] = BASELINES[baseline](models["dense"].eval(), inputs)
            except InputError as error:
                reason = ": ".join(filter(None, (error.what, str(error.found))))
                notes.append(f"{baseline}, batch {batch}: left out, {reason}")
        measured = measure(candidates, repeats=settings.repeats, min_seconds=settings.min_seconds,
                           device=device_of(config))
        for (name, backend), latency in measured.items():
            found[name].setdefault(str(batch), {})[backend] = asdict(latency)
    return found, notes
