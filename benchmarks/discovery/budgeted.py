"""At equal predicted latency, whose circuit changes the model least? Of each method the largest ``top_k`` that fits
into a budget, beside ``budgeted``, judged on images that no search has seen.

    python -m benchmarks.discovery budgeted --model FOLDER --images FOLDER

The time of steps is that of the table in :data:`TABLE`, at batch 1. Without a model a small one of random weights on
noise shows that the benchmark runs, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vitsparse import Ablation, Graph, ViT, data, sort_neurons
from vitsparse.compiler.cost import CostModel, PlanCost
from vitsparse.data import Batches
from vitsparse.discovery import METHODS, budgeted
from vitsparse.discovery.nodes import cut_share, largest_within
from vitsparse.evaluation.faithfulness import circuit_metrics
from vitsparse.model.weights import load_pretrained

TABLE = Path(__file__).parents[1] / "cost_tables" / "amd-epyc-1-thread.json"
BUDGETS = (0.75, 0.5, 0.35, 0.25)
MLP_GROUPS, SEARCH, JUDGE = 8, 128, 500
METRIC = {"random": "ce", "magnitude": "ce", "eap": "ce", "relp": "ce", "eap_ig": "kl", "edge_pruning": "kl",
          "exact": "kl", "node_importance": "kl"}
"""What each searches with: KL where the method can; two differentiate at the dense model, where KL is flat."""
SETTINGS: dict[str, dict[str, Any]] = {"node_importance": {"exact": True}}


def rows(*, quick: bool = False, model: Path | None = None, images: Path | None = None) -> list[dict[str, Any]]:
    """One row for each method and budget: KL and accuracy on held-out images, and what the circuit is made of."""
    small = quick or model is None
    dense = _random_model() if model is None else sort_neurons(load_pretrained(model)).eval()
    search, judge = (_noise(dense) if model is None else _images(dense, images, split, count) for split, count in
                     (("train", SEARCH // 8 if small else SEARCH), ("val", JUDGE // 8 if small else JUDGE)))
    graph = Graph.of(dense, mlp_groups=MLP_GROUPS)
    task = {"graph": graph, "ablation": Ablation.mean(dense, search, graph), "progress": False}
    cost = PlanCost(CostModel.load(TABLE), dense.config)
    found = []
    for name, metric in METRIC.items():
        if small and name in ("exact", "edge_pruning"):
            continue
        settings = {**SETTINGS.get(name, {}), **({"cost": cost} if name == "node_importance" else {})}
        scores, seconds = _timed(lambda name=name, settings=settings, metric=metric: METHODS[name](
            dense, search, metric=metric, **task, **settings))
        found += [(name, budget, largest_within(scores, cost, budget * cost.dense), seconds) for budget in BUDGETS]
    for budget in BUDGETS:
        step = 0.1 if small else 0.02
        circuit, seconds = _timed(lambda budget=budget, step=step: budgeted(dense, search, budget=budget, cost=cost,
                                                                            step=step, **task))
        found.append(("budgeted", budget, circuit, seconds))
    kls, accuracies = circuit_metrics(dense, judge, [circuit.keep for *_, circuit, _ in found], graph=graph,
                                      ablation=task["ablation"], metrics=("kl", "accuracy"))
    return [{"method": name, "budget": budget, "kl": round(kl, 4), "accuracy": round(accuracy, 4),
             "share": round(cost.latency(circuit) / cost.dense, 4), "nodes_dead": len(circuit.dead),
             "edges": circuit.num_kept, "cut_share": round(cut_share(graph, circuit.keep), 3),
             "seconds": round(seconds, 1)}
            for (name, budget, circuit, seconds), kl, accuracy in zip(found, kls.tolist(), accuracies.tolist(),
                                                                      strict=True)]


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def _images(model: ViT, folder: Path | None, split: str, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images of a split of Tiny ImageNet, drawn from all of it."""
    chosen = data.load("tiny_imagenet", split, root=folder, num_classes=model.num_classes)
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:count].numpy()
    return list(Batches(chosen.subset(order), 32))


def _random_model() -> ViT:
    torch.manual_seed(0)
    return ViT(img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=4, num_classes=10).eval()


def _noise(model: ViT) -> list[tuple[torch.Tensor, torch.Tensor]]:
    size = model.config.img_size
    return [(torch.randn(16, 3, size, size), torch.randint(model.num_classes, (16,)))]
