"""Result files of invented models, written by the journal itself. Nobody measured these numbers; they test reports."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from experiments import journal
from experiments.cells import CELLS
from experiments.lab import Made
from experiments.sizes import SIZES

# S, accuracy, times as fast at the smaller and the larger batch
MODELS = {
    "dense-seed": (1, .40, 1, 1), "dense-own": (1, .52, 1, 1), "operator": (1.3, .36, 1.2, 1.1),
    "operator+5": (1.3, .395, 1.2, 1.1), "dense-seed+5": (1, .405, 1, 1), "head": (1.8, .37, 1.5, 1.6),
    "head+5": (1.8, .40, 1.5, 1.6), "dense-own+5": (1, .524, 1, 1), "budgeted-0.75": (1.45, .527, 1.42, 1.5),
    "budgeted-0.5": (2.15, .521, 2.1, 2.2), "budgeted-0.33": (3.3, .517, 2.9, 3.1),
    "budgeted-0.25": (4.4, .485, 3.8, 4.1), "budgeted-0.5-seed1": (2.1, .526, 2.05, 2.2),
    "budgeted-0.5-seed2": (2.2, .518, 2.13, 2.25),
    "budgeted-0.33-seed1": (3.2, .512, 2.85, 3.0), "budgeted-0.33-seed2": (3.4, .506, 2.95, 3.2),
    "magnitude-0.5": (2.1, .47, 2, 2.1), "magnitude-0.33": (3.2, .42, 2.8, 3), "importance-0.5": (2.1, .505, 2, 2.1),
    "importance-0.33": (3.2, .48, 2.8, 3), "smaller-0.5": (2.12, .46, 2.2, 2.05), "classes-dense": (1, .66, 1, 1),
    "classes-0.5": (2.1, .665, 2, 2.2), "classes-0.33": (3.3, .65, 3, 3.2), "classes-0.25": (4.5, .63, 4, 4.2),
    "classes-0.15": (7.5, .57, 6.2, 7)}
MACHINE = {"cpu": "Invented CPU", "cores": 2, "threads": 2, "gpu": None, "cuda": None, "platform": "nowhere",
           "python": "3.11", "torch": "2.14.1", "vitsparse": "0.1", "commit": 4 * "0123456789",
           "date": "2026-01-02T03:04:05+00:00"}


def write(results: Path, size: str, names: set[str] | None = None, machine: dict[str, Any] = MACHINE) -> None:
    """Both files of the cells ``names`` (None: all) into ``results``/``size``."""
    cells = [dataclasses.replace(cell, make=_maker(cell, size), needs=()) for cell in CELLS
             if cell.name in (MODELS if names is None else names)]
    lab = SimpleNamespace(size=SIZES[size], out=results / "nowhere", time=lambda folder: _latency(folder.name, size))
    lab.among = lambda classes: lab
    with mock.patch.object(journal, "machine_facts", return_value=machine):
        journal.Journal(cells, lab, results / size, f"python -m experiments --size {size} --data PATH").run()


def _maker(cell: journal.Cell, size: str) -> Any:
    accuracy, chosen = MODELS[cell.name][1], SIZES[size]
    images = 80 * (10 if cell.of_chosen else chosen.classes)
    recipe = chosen.seed if cell.name == "dense-seed" else chosen.own
    training = {"epochs": 5, "seconds": 100.5, "seconds_with_validation": 120.0, "images_per_second": 420.0,
                "val_accuracy": [0.1, accuracy - 0.01]}
    before = _row(cell.name, accuracy - 0.06, images) if cell.experiment in ("pareto", "classes") else None
    return lambda lab, folder: Made({"recipe_name": "x", "recipe": recipe.to_dict()}, _row(cell.name, accuracy, images),
                                    None if cell.name in ("dense-own+5", "smaller-0.5") else before,
                                    None if cell.name in ("operator", "head") else training)


def _row(name: str, accuracy: float, images: int) -> dict[str, Any]:
    """Some images are easy for all models, as real ones are: differences are between paired answers."""
    ease = np.random.default_rng(0).random(images) + 0.1 * np.random.default_rng(len(name)).standard_normal(images)
    right = np.zeros(images, dtype=bool)
    right[np.argsort(ease)[:round(accuracy * images)]] = True
    S, sparse = MODELS[name][0], not (name.startswith(("dense", "smaller")) or name == "classes-dense")
    about = {"edges_kept": round(1027 / S**2), "edges": 1027, "nodes_dead": round(40 - 40 / S), "nodes_constant": 2,
             "nodes": 73}
    return {"accuracy": float(right.mean()), "loss": 4 * (1 - accuracy), "kl": 0.02, "images": images,
            "right": np.packbits(right).tobytes().hex(), "flops": round(169e6 / S), "S": S,
            "parameters": round(1.2e6 / S), **(about if sparse else dict.fromkeys(about))}


def _latency(name: str, size: str) -> dict[str, Any]:
    runtimes = {"eager": 2.0, "compile": 1.7, "openvino": 1.0}
    batches = {}
    for batch, speed in zip(SIZES[size].batches, MODELS[name][2:], strict=True):
        dense = {runtime: _spread(ratio * 1.5 * batch) for runtime, ratio in runtimes.items()}
        batches[str(batch)] = {"model": {"backend": "cpu", **_spread(1.5 * batch / speed)}, "dense": dense,
                               "strongest": "openvino", "notes": [],
                               "speedup": {"p20": 0.97 * speed, "p50": float(speed), "p80": 1.04 * speed},
                               "uncut": {"backend": "cpu", "p20": 1.7, "p50": 1.8, "p80": 2.0, "n": 30, "speedup": {
                                   "p20": 0.8 * speed, "p50": 0.85 * speed, "p80": 0.9 * speed}}}
    loop = {"batch": 128, "images": 1600, "runner": "cpu", "loop_s": _spread(3 / MODELS[name][3]),
            "model_s": _spread(2.5 / MODELS[name][3])}
    return {"dtype": "float32", "batches": batches, "loop": loop, "accuracy": 0.5}


def _spread(value: float) -> dict[str, float]:
    return {"p20": 0.95 * value, "p50": value, "p80": 1.1 * value, "n": 30}
