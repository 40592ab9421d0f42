"""``vitsparse discover``: a dense model in, its circuit and the ablation that belongs to it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from ..circuit import Circuit, EdgeScores, Graph
from ..compiler.cost import CostModel, PlanCost, default_file
from ..compiler.cost_table import QUICK, measure_cost
from ..data import Batches, ImageSet
from ..data.corruption import corruption_named
from ..data.ranks import ranks
from ..discovery import METHODS
from ..errors import InputError
from ..evaluation.ablation import Ablation
from ..evaluation.metrics import Metric, metric_named
from ..model.vit import ViT
from ..report import draw_circuit, require_matplotlib, save_figure
from .config import SETTINGS, Config, DataConfig, DiscoverConfig
from .flags import Common, parse
from .shared import begin, check_classes, device_of, load_dense, load_images

CIRCUIT_FILE, ABLATION_FILE = "circuit.json", "ablation.safetensors"
SCORES_FILE, COST_FILE = "scores.safetensors", "cost.json"
DECISIONS, STATE = "journal.jsonl", "state.safetensors"  # what a search goes on from: lines of decisions, or arrays
SHARE = 0.2  # of the edges, where neither the user nor the method has a number


@dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Find the circuit of a dense model: circuit.json, ablation.safetensors, scores.safetensors, a picture."""

    dense: tyro.conf.Positional[Path]
    """folder of the dense model"""
    data: DataConfig
    discover: DiscoverConfig


def main(argv: Sequence[str]) -> int:
    """Search into the output folder."""
    flags, config = parse(Flags, argv, dense=tyro.MISSING)
    discover(config, flags.dense, begin(config, "discover", splits=("train",), files=(flags.dense,)),
             resume=flags.resume)
    return 0


def discover(config: Config, model_folder: Path, out: Path, *, resume: bool) -> Circuit:
    """Search the circuit of the model in ``model_folder``; it, its ablation, its picture and more go into ``out``."""
    require_matplotlib()
    settings, here = config.discover, ranks()
    images, model = load_images(config, "train"), load_dense(model_folder, config)
    check_classes(model, images, model_folder)
    images = of_classes(images, settings.classes)
    graph = Graph.of(model, granularity=settings.granularity, mlp_groups=settings.mlp_groups)
    ablation = make_ablation(config, model, images, graph)
    journal = out / (DECISIONS if settings.method in ("acdc", "exact") else STATE)
    if here.is_first:
        for stale in (SCORES_FILE, ABLATION_FILE, *(() if resume else (DECISIONS, STATE))):
            (out / stale).unlink(missing_ok=True)
    here.barrier()
    found = METHODS[settings.method](
        model, _first(config, images, settings.images), graph=graph, ablation=ablation, journal=journal,
        progress=here.is_first, **arguments(config, model, out))
    circuit = choose(found, settings)
    if here.is_first:
        _write(found, circuit, ablation, out, f"Circuit of {config.data.name}")
    here.barrier()
    return circuit


def of_classes(images: ImageSet, classes: Sequence[int]) -> ImageSet:
    """The images of ``classes`` (none: all of them), with their labels as they are."""
    if not classes:
        return images
    outside = [number for number in classes if not 0 <= number < len(images.classes)]
    if outside:
        raise InputError("the data set does not have this class", where="discover.classes", found=outside[0],
                         expected=f"0 to {len(images.classes) - 1}")
    return images.subset(np.isin(images.labels, classes))


def make_ablation(config: Config, model: ViT, images: ImageSet, graph: Graph) -> Ablation:
    """The ablation that the configuration asks for, measured on the first of ``images``."""
    kind, batches = config.discover.ablation, _first(config, images, config.discover.ablation_images)
    if kind == "zero":
        return Ablation.zero(model, graph=graph)
    if kind == "mean":
        return Ablation.mean(model, batches, graph=graph)
    if kind == "optimal":
        return Ablation.optimal(model, batches, graph=graph, metric=_metric("kl", config.discover.classes),
                                steps=config.discover.ablation_steps, seed=config.seed, progress=ranks().is_first)
    corrupt = corruption_named(config.discover.corruption, patch_size=model.config.patch_size, batches=batches,
                               seed=config.seed)
    return Ablation.counterfactual(model, corrupt)


def arguments(config: Config, model: ViT, out: Path) -> dict[str, Any]:
    """What the method is given besides model, images, graph and ablation: the settings that are its own."""
    settings, known = config.discover, signature(METHODS[config.discover.method]).parameters
    given = {name: getattr(settings, name) for name in SETTINGS if name in known}
    given = {name: value for name, value in given.items() if value is not None}
    if "cost" in known:
        given["cost"] = PlanCost(cost_table(settings.cost, out), model.config)
    for name in SETTINGS:
        if name in known and known[name].default is Parameter.empty and name not in given:
            raise InputError(f"the method {settings.method} needs a setting", where=f"discover.{name}")
    if "seed" in known:
        given["seed"] = config.seed
    if settings.metric or settings.classes:
        given["metric"] = _metric(settings.metric or known["metric"].default, settings.classes)
    return given


def cost_table(file: str | None, out: Path) -> CostModel:
    """The table in ``file``, or else that in the output folder, where the machine's own is put if there is none."""
    path = Path(file) if file else out / COST_FILE
    if not file and not path.exists() and ranks().is_first:
        known = default_file(torch.get_num_threads())
        print(f"what the steps of a plan cost on this machine: {known if known.exists() else 'measuring it'} -> {path}")
        (CostModel.load(known) if known.exists() else measure_cost(circuits=QUICK)).save(path)
    ranks().barrier()
    return CostModel.load(path)


def choose(found: EdgeScores | Circuit, settings: DiscoverConfig) -> Circuit:
    """The circuit that was found, or that the configuration chooses from the scores."""
    circuit = found if isinstance(found, Circuit) else _selected(found, settings)
    return circuit.prune() if settings.prune else circuit


def _selected(scores: EdgeScores, settings: DiscoverConfig) -> Circuit:
    by, total = settings.by or "magnitude", scores.graph.num_edges
    if settings.select == "threshold":
        if settings.threshold is None:
            raise InputError("a selection by threshold needs one", where="discover.threshold")
        return scores.threshold(settings.threshold, by=by)
    edges = scores.provenance.get("edges", SHARE) if settings.edges is None else settings.edges
    count = round(edges * total) if 0 <= edges < 1 else int(edges)
    if not (0 <= edges <= total and (edges < 1 or edges == count)):
        raise InputError("cannot keep that many edges", where="discover.edges", found=edges,
                         expected=f"a share below 1, or a whole number, at most {total}")
    return (scores.greedy if settings.select == "greedy" else scores.top_k)(count, by=by)


def _metric(name: str, classes: Sequence[int]) -> Metric:
    metric = metric_named(name)
    return metric.among(classes) if classes else metric


def _first(config: Config, images: ImageSet, count: int) -> Batches:
    return Batches(images, config.discover.batch_size, device=device_of(config), limit=count)


def _write(found: EdgeScores | Circuit, circuit: Circuit, ablation: Ablation, out: Path, title: str) -> None:
    if isinstance(found, EdgeScores):
        found.save(out / SCORES_FILE)
    if ablation.kind != "counterfactual":
        ablation.save(out / ABLATION_FILE)
    circuit.save(out / CIRCUIT_FILE)
    save_figure(draw_circuit(circuit, title), out / "circuit")
    print(f"{circuit} -> {out / CIRCUIT_FILE}")
    if ablation.kind == "counterfactual":
        print("a counterfactual ablation depends on the image: this circuit is for analysis and cannot be compiled")
