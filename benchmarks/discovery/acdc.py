"""ACDC against the plain algorithm: one whole vectorised edge-wise forward for every edge.

On a small model both search to the end and must find one circuit. On the full shape ours searches to the end, and the
plain algorithm runs for edges spread evenly over that search, in the state in which the search met them: its time per
edge does not depend on the edge, so a few tell the whole, and each must be decided alike. ``ratio`` counts a forward
per edge for the plain algorithm, as it stands; ``ratio_live`` only for edges into readers with a way to the logits,
which a better plain algorithm would tell apart.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.discovery.plain import EdgeMasked
from vitsparse import Ablation, Circuit, data
from vitsparse.circuit import Graph
from vitsparse.circuit.liveness import reaches_logits
from vitsparse.discovery import acdc
from vitsparse.evaluation.metrics import kl
from vitsparse.model.vit import ViT
from vitsparse.model.weights import load_pretrained

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 10}
FULL = {"img_size": 64, "patch_size": 8, "embed_dim": 256, "depth": 12, "num_heads": 8, "num_classes": 20}
IMAGES = {"cpu": 8, "cuda": 256}
THRESHOLD = 1e-3


def rows(*, quick: bool = False, model: Path | None = None, images: Path | None = None) -> list[dict[str, Any]]:
    """One row per model: a small one, and one of random weights or the trained one at ``model`` with images of its
    data set, found at ``images``."""
    found = [whole_searches(Task.of(lively(ViT(**SMALL)), noise(SMALL["img_size"], 8)))]
    if quick:
        return found
    count = IMAGES[DEVICE]
    if model is None:
        task = Task.of(lively(ViT(**FULL)), noise(FULL["img_size"], count))
    else:
        trained = load_pretrained(model)
        chosen = data.load("tiny_imagenet", "train", root=images, num_classes=trained.num_classes)
        task = Task.of(trained, next(iter(data.Batches(chosen, count, limit=count)))[0])
    return [*found, sampled_search(task)]


@dataclass
class Task:
    """What is searched, and the plain algorithm's way to measure a circuit."""

    model: ViT
    graph: Graph
    ablation: Ablation
    images: Tensor

    @classmethod
    def of(cls, model: ViT, images: Tensor) -> Task:
        model, images = model.eval().to(DEVICE), images.to(DEVICE)
        graph = Graph.of(model)
        return cls(model, graph, Ablation.mean(model, [(images, None)], graph), images)

    def ours(self, journal: Path | None = None) -> tuple[Circuit, float]:
        """The circuit, and seconds."""
        start = time.perf_counter()
        circuit = acdc(self.model, [(self.images, None)], graph=self.graph, ablation=self.ablation, threshold=THRESHOLD,
                       journal=journal, progress=False)
        return circuit, time.perf_counter() - start

    @torch.no_grad()
    def plain(self) -> Callable[[np.ndarray], float]:
        """A function from circuits to metrics, with the number of images per forward that is fastest here."""
        dense = self.model(self.images).double()
        keep = torch.ones(self.graph.num_edges, device=DEVICE)
        sizes = [size for size in (4, 8, 16, 64, 256) if size <= len(self.images)]
        masked = {size: EdgeMasked(self.model, self.graph, self.ablation, size) for size in sizes}

        @torch.no_grad()
        def value(circuit: np.ndarray, size: int) -> float:
            weights, total = torch.as_tensor(circuit).to(keep), 0.0
            for images, targets in zip(self.images.split(size), dense.split(size), strict=True):
                total = total + kl(masked[size](images, weights).double(), targets) * len(images)
            return float(total) / len(self.images)

        everything = np.ones(self.graph.num_edges, dtype=bool)
        for size in sizes:
            value(everything, size)
        best = min(sizes, key=lambda size: seconds(lambda: value(everything, size)))
        return lambda circuit: value(circuit, best)


def whole_searches(task: Task) -> dict[str, Any]:
    """Both algorithms from the first edge to the last."""
    value = task.plain()
    start = time.perf_counter()
    keep = np.ones(task.graph.num_edges, dtype=bool)
    current = value(keep)
    for edge in reversed(range(task.graph.num_edges)):
        keep[edge] = False
        without = value(keep)
        keep[edge] = not without - current < THRESHOLD
        current = current if keep[edge] else without
    baseline = time.perf_counter() - start
    circuit, ours = task.ours()
    return {**about("acdc, both to the end", task, circuit), "ours_s": round(ours, 2), "baseline_s": round(baseline, 2),
            "ratio": round(baseline / ours, 2), "identical": bool(np.array_equal(circuit.keep, keep))}


def sampled_search(task: Task, samples: int = 40) -> dict[str, Any]:
    """Ours from the first edge to the last; the plain algorithm on ``samples`` edges, half of them before and half of
    them after, so that whatever else the machine does hits both."""
    value = task.plain()
    everything = np.ones(task.graph.num_edges, dtype=bool)
    before = [seconds(lambda: value(everything)) for _ in range(samples)]
    with tempfile.TemporaryDirectory() as folder:
        circuit, ours = task.ours(Path(folder) / "journal")
        lines = (Path(folder) / "journal").read_text().splitlines()[1:]
    decisions = [json.loads(line)["kept"] for line in lines][::-1]
    states = list(met(circuit, samples))
    alike, after = True, []
    for edge, keep in states:
        start = time.perf_counter()
        without = value(keep)
        after.append(time.perf_counter() - start)
        keep[edge] = True
        cut = without - value(keep) < THRESHOLD
        alike &= cut != decisions[edge]
    each = float(np.median(before + after))
    return {**about("acdc, plain on a sample", task, circuit), "ours_s": round(ours, 2),
            "baseline_s": round(each * task.graph.num_edges, 1), "ratio": round(each * task.graph.num_edges / ours, 2),
            "ratio_live": round(each * live_edges(circuit) / ours, 2), "identical": alike, "samples": samples}


def met(circuit: Circuit, samples: int) -> Iterator[tuple[int, np.ndarray]]:
    """Edges spread over the search, each with the circuit that is measured for it."""
    for edge in np.linspace(0, circuit.graph.num_edges - 1, samples).astype(int)[::-1]:
        keep = np.ones(circuit.graph.num_edges, dtype=bool)
        keep[edge:] = circuit.keep[edge:]
        keep[edge] = False
        yield int(edge), keep


def live_edges(circuit: Circuit) -> int:
    """How many edges lead into readers with a kept path to the logits: all that could matter when they were tried."""
    alive = reaches_logits(circuit.graph, circuit.keep)
    return sum(reader.fan_in for reader in circuit.graph.reader_nodes
               if reader.kind == "logits" or alive[list(reader.drives)].any())


def about(name: str, task: Task, circuit: Circuit) -> dict[str, Any]:
    """What was searched."""
    config = task.model.config
    return {"name": name, "device": DEVICE, "depth": config.depth, "heads": config.num_heads, "width": config.embed_dim,
            "tokens": config.num_tokens, "edges": task.graph.num_edges, "kept": circuit.num_kept,
            "images": len(task.images), "threshold": THRESHOLD}


def lively(model: ViT) -> ViT:
    """Random weights under which every sender matters a little: of a fresh model none does."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
    return model


def noise(size: int, count: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
