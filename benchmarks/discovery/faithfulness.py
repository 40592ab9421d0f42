"""How faithful are the circuits of each method on a trained model? CPR, CMD, curves and a figure:

    python -m benchmarks.discovery.faithfulness MODEL --data tiny_imagenet --root FOLDER --out results/faithfulness

Circuits are found on the first images of the training split and judged on the first of the validation split, by the
metric of the table. Scores are kept under ``--out``/scores together with what they were made from, so that a slow
method (``exact``, ``acdc``) runs once, and later runs add methods to the table; scores of another search are refused.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitsparse import Ablation, EdgeScores, Graph, ViT, data
from vitsparse.circuit.files import read_json, write_json, write_text
from vitsparse.data import Batches
from vitsparse.discovery import METHODS
from vitsparse.discovery.identity import check_same_search, data_digest, identity
from vitsparse.evaluation.faithfulness import Curve, completeness, faithfulness_curve
from vitsparse.evaluation.latency import machine_facts
from vitsparse.evaluation.stability import stability
from vitsparse.model.weights import load_pretrained
from vitsparse.report import draw_faithfulness, save_figure

NAMES = ("exact", "acdc", "edge_pruning", "eap_ig", "eap", "relp", "magnitude", "random")
SEARCH_METRIC = {"eap": "ce", "relp": "ce"}
"""The others search with the metric of the table; these two differentiate at the dense model, where KL is flat."""


@dataclass(frozen=True)
class Task:
    """A model, what to search with and what to judge with."""

    model: ViT
    graph: Graph
    ablation: Ablation
    metric: str
    search: Batches
    judge: Batches
    settings: dict[str, dict[str, Any]]


def row_of(task: Task, name: str, a: argparse.Namespace) -> tuple[dict[str, Any], Curve]:
    """What the table says of the method ``name``, and its curve."""
    scores, seconds = stored_scores(task, name, a.out / "scores")
    select = getattr(EdgeScores, a.select)
    curve = faithfulness_curve(task.model, task.judge, scores, ablation=task.ablation, metric=task.metric,
                               select=select)
    fifth = select(scores, int(0.2 * task.graph.num_edges))
    row = {"method": name, "cpr": round(curve.cpr, 4), "cmd": round(curve.cmd, 4),
           "f at 5 %": at(curve, curve.faithfulness, 0.05),
           "f at 20 %": at(curve, curve.faithfulness, 0.2),
           "accuracy at 20 %": at(curve, curve.accuracy, 0.2)}
    if a.knockouts:
        found = completeness(task.model, task.judge, fifth, ablation=task.ablation, metric=task.metric,
                             knockouts=a.knockouts)
        row["completeness gap at 20 %"] = round(found.mean, 4)
    if a.runs:
        found = stability(lambda batches: select(search_scores(replace(task, search=batches), name), fifth.num_kept),
                          task.search, runs=a.runs)
        row["Jaccard at 20 %"] = "{:.2f} [{:.2f}, {:.2f}]".format(found.mean, *found.interval)
    return {**row, "seconds": round(seconds, 2), "images": task.search.num_images}, curve


def at(curve: Curve, values: tuple[float, ...], fraction: float) -> float:
    """The entry of ``values`` at that fraction of the edges, to four digits; no minus zero."""
    return round(values[curve.fractions.index(fraction)], 4) + 0.0


def stored_scores(task: Task, name: str, folder: Path) -> tuple[EdgeScores, float]:
    """Scores from ``folder``, if the same search left them there, else from the search itself."""
    search = identity(name, task.model, task.graph, task.ablation, SEARCH_METRIC.get(name, task.metric),
                      data=data_digest(task.search), **task.settings.get(name, {}))
    path, facts = folder / f"{name}.safetensors", folder / f"{name}.json"
    if facts.exists():
        stored = read_json(facts)
        check_same_search(stored["search"], search, facts)
        return EdgeScores.load(path), stored["seconds"]
    start = time.perf_counter()
    scores = search_scores(task, name, folder)
    seconds = time.perf_counter() - start
    scores.save(path)
    write_json(facts, {"search": search, "seconds": seconds})
    return scores, seconds


def search_scores(task: Task, name: str, folder: Path | None = None) -> EdgeScores:
    """What the method finds; journals are kept in ``folder``, so that a search that was killed goes on.

    ACDC decides, so an edge scores the lowest threshold at which it is cut, and twice the highest if it never is.
    """
    def run(label: str, **settings: Any) -> Any:
        return METHODS[name](task.model, task.search, graph=task.graph, ablation=task.ablation,
                             metric=SEARCH_METRIC.get(name, task.metric), journal=folder and folder / label, **settings)

    settings = task.settings.get(name, {})
    if name != "acdc":
        return run(f"{name}.journal", **settings)
    thresholds = sorted(settings["thresholds"], reverse=True)
    values = np.full(task.graph.num_edges, 2 * thresholds[0])
    for threshold in thresholds:
        values[~run(f"acdc-{threshold}.journal", threshold=threshold).keep] = threshold
    return EdgeScores(task.graph, values, {"method": "acdc", **settings})


def markdown(rows: list[dict[str, Any]], about: str) -> str:
    """The rows as a table, with the setting and the machine below."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|---|" + "--:|" * (len(rows[0]) - 1)]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    return "\n".join([*lines, "", about]) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder or safetensors file of a dense ViT")
    parser.add_argument("--data", default="tiny_imagenet", choices=data.DATA_SETS)
    parser.add_argument("--root", type=Path, help="folder of the data set")
    parser.add_argument("--images", type=int, default=128, help="to search with, of the training split")
    parser.add_argument("--judges", type=int, default=256, help="to judge with, of the validation split")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--granularity", default="head")
    parser.add_argument("--ablation", default="mean", choices=("zero", "mean"))
    parser.add_argument("--ablation-images", type=int, default=1000, help="of the training split, for the mean")
    parser.add_argument("--metric", default="kl")
    parser.add_argument("--select", default="top_k", choices=("top_k", "greedy"))
    parser.add_argument("--methods", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--thresholds", type=float, nargs="+", default=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
                        help="of ACDC, in nats of KL")
    parser.add_argument("--steps", type=int, default=1000, help="of edge_pruning")
    parser.add_argument("--knockouts", type=int, default=10, help="for completeness; 0: leave it out")
    parser.add_argument("--runs", type=int, default=0, help="searches on bootstrap samples, for stability")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results/faithfulness"))
    return parser.parse_args()


def task_of(a: argparse.Namespace) -> Task:
    """The model and the images that the arguments name."""
    model = load_pretrained(a.model, device=a.device)
    train, val = (data.load(a.data, split, root=a.root, num_classes=model.num_classes) for split in ("train", "val"))
    search, judge, measure = (Batches(images, a.batch, device=a.device, limit=limit) for images, limit in (
        (train, a.images), (val, a.judges), (train, a.ablation_images)))
    graph = Graph.of(model, granularity=a.granularity)
    ablation = Ablation.zero(model) if a.ablation == "zero" else Ablation.mean(model, measure)
    settings = {"acdc": {"thresholds": list(a.thresholds)}, "edge_pruning": {"steps": a.steps}}
    return Task(model, graph, ablation, a.metric, search, judge, settings)


def main() -> None:
    """Write faithfulness.json, .md, .png and .svg, and print the table."""
    a = arguments()
    task, rows, curves = task_of(a), [], {}
    (a.out / "scores").mkdir(parents=True, exist_ok=True)
    for name in a.methods:
        row, curves[name] = row_of(task, name, a)
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    rows.sort(key=lambda row: -row["cpr"])
    facts = machine_facts()
    setting = (f"{task.graph}, {task.graph.num_edges} edges, {a.ablation} ablation, {a.metric}, {a.select}; judged on "
               f"{task.judge.num_images} validation images. {facts['gpu'] or facts['cpu']}, torch {facts['torch']}.")
    write_json(a.out / "faithfulness.json", {
        "rows": rows, "curves": {name: curve.as_dict() for name, curve in curves.items()}, "setting": setting,
        "machine": facts})
    write_text(a.out / "faithfulness.md", markdown(rows, setting))
    save_figure(draw_faithfulness(curves), a.out / "faithfulness")
    print(markdown(rows, setting))


if __name__ == "__main__":
    main()
