"""``vitsparse discover``: a dense model in, its circuit and the ablation that belongs to it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..circuit import Circuit, Graph
from ..data import Batches
from ..discovery import acdc
from ..evaluation.ablation import Ablation
from ..report import draw_circuit, require_matplotlib, save_figure
from .config import Config, DataConfig, DiscoverConfig
from .flags import Common, parse
from .shared import begin, check_classes, device_of, load_dense, load_images

CIRCUIT_FILE, ABLATION_FILE, JOURNAL_FILE = "circuit.json", "ablation.safetensors", "journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Find the circuit of a dense model: circuit.json, ablation.safetensors, journal.jsonl and a picture."""

    dense: tyro.conf.Positional[Path]
    """folder of the dense model"""
    data: DataConfig
    discover: DiscoverConfig


def main(argv: Sequence[str]) -> int:
    """Search into the output folder."""
    flags, config = parse(Flags, argv, dense=tyro.MISSING)
    discover(config, flags.dense, begin(config, "discover"), resume=flags.resume)
    return 0


def discover(config: Config, model_folder: Path, out: Path, *, resume: bool) -> Circuit:
    """Search the circuit of the model in ``model_folder``; it, its ablation, journal and picture go into ``out``."""
    require_matplotlib()
    settings, images = config.discover, load_images(config, "train")
    model = load_dense(model_folder, config)
    check_classes(model, images, model_folder)
    graph = Graph.of(model, granularity=settings.granularity, mlp_groups=settings.mlp_groups)

    def first(count: int) -> Batches:
        return Batches(images, settings.batch_size, device=device_of(config), limit=count)

    ablation = (Ablation.zero(model, graph=graph) if settings.ablation == "zero"
                else Ablation.mean(model, first(settings.ablation_images), graph=graph))
    if not resume:
        (out / JOURNAL_FILE).unlink(missing_ok=True)
    circuit = acdc(model, first(settings.images), graph=graph, ablation=ablation, threshold=settings.threshold,
                   metric=settings.metric, journal=out / JOURNAL_FILE)
    ablation.save(out / ABLATION_FILE)
    circuit.save(out / CIRCUIT_FILE)
    save_figure(draw_circuit(circuit, f"Circuit of {config.data.name}"), out / "circuit")
    print(f"{circuit} -> {out / CIRCUIT_FILE}")
    return circuit
