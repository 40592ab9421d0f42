"""Do the methods find circuits that are known? No trained model is needed: python -m benchmarks.discovery.planted

For every method that scores edges: the area under its ROC curve over planted circuits of three sizes (1 where the true
edges come first, 0.5 by chance), the worst and the mean of them, and the seconds all searches took together. For ACDC,
which decides, the area is that of its circuit as 0 and 1. ACDC and Edge Pruning are told what nobody knows of a real
model: the least effect of a true edge, and how many there are.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.discovery.faithfulness import NAMES, SEARCH_METRIC
from vitsparse import Ablation, Circuit, EdgeScores
from vitsparse.discovery import METHODS
from vitsparse.evaluation.planted import MIN_EFFECT, Planted, random_planted
from vitsparse.evaluation.roc import roc

SHAPES = ({"depth": 2, "heads": 2}, {"depth": 3, "heads": 2, "granularity": "qkv"}, {"depth": 3, "heads": 3})
SEEDS = range(3)


def rows() -> list[dict[str, Any]]:
    """One row per method."""
    circuits = [random_planted(seed, **shape) for shape in SHAPES for seed in SEEDS]
    return [row_of(name, circuits) for name in NAMES]


def row_of(name: str, circuits: list[Planted]) -> dict[str, Any]:
    """What one method makes of all circuits."""
    start = time.perf_counter()
    areas = [roc(search(name, planted), planted.circuit).auc for planted in circuits]
    return {"method": name, "worst_auc": round(min(areas), 4), "mean_auc": round(sum(areas) / len(areas), 4),
            "exactly": f"{sum(area == 1 for area in areas)} of {len(areas)}", "images": len(circuits[0].images),
            "seconds": round(time.perf_counter() - start, 2)}


def search(name: str, planted: Planted) -> EdgeScores:
    """The scores of a method; those of a circuit are 0 and 1."""
    share = planted.circuit.num_kept / planted.graph.num_edges
    settings = {"acdc": {"threshold": MIN_EFFECT / 2}, "edge_pruning": {"steps": 200, "sparsity": 1 - share}}
    found = METHODS[name](planted.model, planted.batches(), graph=planted.graph, progress=False,
                          ablation=Ablation.mean(planted.model, planted.batches(), planted.graph),
                          metric=SEARCH_METRIC.get(name, "kl"), **settings.get(name, {}))
    return EdgeScores(planted.graph, found.keep) if isinstance(found, Circuit) else found


if __name__ == "__main__":
    for row in rows():
        print("  ".join(f"{key} {value}" for key, value in row.items()))
