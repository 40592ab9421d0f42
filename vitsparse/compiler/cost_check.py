"""Predicted latencies beside measured ones, of random circuits that no table was made from."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import torch

from ..errors import InputError
from ..evaluation.ablation import Ablation
from ..evaluation.latency import measure
from ..model.config import ViTConfig
from ..model.vit import ViT
from .cost import CostModel, PlanCost
from .cost_samples import Sample, samples
from .sparse_vit import SparseViT
from .sparsify import sparsify

SEED = 1_000_000  # far from that of the circuits that tables are made from
REFERENCE = ViTConfig(img_size=64, patch_size=8, embed_dim=256, depth=12, num_heads=8, num_classes=200)
"""Deeper than any model that tables are made from."""


def check_predictions(table: CostModel, circuits: int, *, batches: Sequence[int] = (1, 32), seed: int = 0,
                      config: ViTConfig | None = None, min_seconds: float = 0.5) -> Iterator[dict[str, Any]]:
    """For each of ``circuits`` random circuits and each batch size: ``circuit``, ``batch``, ``predicted_us`` and
    ``measured_us``, the median of calls of the compiled model on the CPU. The circuits are of ``config``; if that is
    None, every second one is of :data:`REFERENCE` and the others of random shapes.

    Uses as many threads as torch has; raises :class:`InputError` where the table is for another number of them.
    """
    if table.threads != torch.get_num_threads():
        raise InputError("the cost table is for another number of threads", where="table",
                         expected=torch.get_num_threads(), found=table.threads)
    drawn = (samples(SEED + seed, shape) for shape in ((None, REFERENCE) if config is None else (config,)))
    for sample in islice(chain.from_iterable(zip(*drawn, strict=True)), circuits):
        model = compiled(sample)
        for batch in batches:
            images = torch.randn(batch, sample.config.in_chans, sample.config.img_size, sample.config.img_size)
            with torch.inference_mode():
                alone = {"model": partial(model, images)}
                found = measure(alone, repeats=10, min_seconds=min_seconds, pause=0)["model"]
            yield {"circuit": str(sample), "batch": batch, "measured_us": 1e3 * found.p50,
                   "predicted_us": PlanCost(table, sample.config, batch=batch).latency(sample.circuit)}


def compiled(sample: Sample) -> SparseViT:
    """The circuit in a model with random weights, with means for its cut edges."""
    model = ViT(**sample.config.to_dict()).eval()
    images = torch.randn(2, sample.config.in_chans, sample.config.img_size, sample.config.img_size)
    ablation = Ablation.mean(model, [(images, torch.zeros(2, dtype=torch.long))], sample.circuit.graph)
    return sparsify(model, sample.circuit, ablation=ablation, backend="cpu").eval()


def median_errors(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """For each batch size the median of |predicted / measured - 1|."""
    errors: dict[int, list[float]] = {}
    for row in rows:
        errors.setdefault(row["batch"], []).append(abs(row["predicted_us"] / row["measured_us"] - 1))
    return {batch: statistics.median(found) for batch, found in errors.items()}
