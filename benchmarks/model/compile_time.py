"""Section ``compile``: how long ``sparsify`` takes, and how that grows with the edges."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.model.candidates import some_mean
from benchmarks.model.targets import MODEL
from vitsparse import Circuit, create_model, sparsify
from vitsparse.circuit import Graph
from vitsparse.model.vit import ViT

TARGETS = ((MODEL, "head", 1.0), ("vit_base_patch16_224", "qkv", 5.0))
"""5,659 and 32,491 edges: seconds that a compilation may take."""
DEPTHS = (6, 12, 24)
SLOWER = 1.0
"""The exponent of seconds over edges x log(edges): above one, time grows faster than that."""


def compile_time(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Seconds under mean ablation with half of the edges cut at random: half of all sums differ, nothing dies."""
    targets = (("vit_digits_p2_d64_l6_h4", "head", 1.0),) if quick else TARGETS
    for name, granularity, target in targets:
        model = create_model(name).eval()
        graph = Graph.of(model, granularity=granularity)
        seconds = seconds_of(model, graph, repeats=1 if quick else 3)
        yield {"kind": "seconds", "name": f"sparsify, {graph.num_edges:,} edges", "model": name,
               "granularity": granularity, "edges": graph.num_edges, **seconds, "target": target,
               "met": seconds["seconds"] < target}
    yield from growth((2, 3) if quick else DEPTHS)


def growth(depths: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Models of one width and several depths, and the slope of log(seconds) over log(edges x log(edges))."""
    sizes, times = [], []
    for depth in depths:
        model = create_model(MODEL, depth=depth).eval()
        graph = Graph.of(model)
        seconds = seconds_of(model, graph, repeats=3)
        sizes.append(graph.num_edges)
        times.append(seconds["seconds"])
        yield {"kind": "seconds", "name": f"sparsify, depth {depth}", "model": MODEL, "granularity": "head",
               "edges": graph.num_edges, **seconds}
    slope = np.polyfit([math.log(edges * math.log(edges)) for edges in sizes], np.log(times), 1)[0]
    yield {"kind": "exponent", "name": "growth over edges x log(edges)", "exponent": round(float(slope), 3),
           "edges": max(sizes), "target": SLOWER, "met": bool(slope <= SLOWER)}


def seconds_of(model: ViT, graph: Graph, repeats: int) -> dict[str, float]:
    """The median over ``repeats`` of ``sparsify``, and of packing and the first forward behind it."""
    circuit = Circuit(graph, np.random.default_rng(0).random(graph.num_edges) < 0.5)
    ablation, config = some_mean(model, circuit), model.config
    image = torch.zeros(1, config.in_chans, config.img_size, config.img_size)
    compiling, first = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            sparse = sparsify(model, circuit, ablation=ablation).eval()
            compiled = time.perf_counter()
            sparse(image)
        compiling.append(compiled - start)
        first.append(time.perf_counter() - compiled)
    return {"seconds": round(float(np.median(compiling)), 4), "first_forward_s": round(float(np.median(first)), 4)}
