"""The seed project's four rows, theirs and ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitsparse.circuit.files import read_json

from ..seed_table import NAME
from . import words
from .findings import Finding, Findings, compared_with, origins

SEED = Path(__file__).parents[1] / "seed_table" / "seed.json"
BATCH = 128  # of the seed's loop: its losses are sums over such batches
ROLES = {"baseline": ("dense-seed",), "pruned": ("operator", "head"), "baseline + 5 epochs": ("dense-seed+5",),
         "pruned + 5 epochs": ("operator+5", "head+5")}
CELLS = tuple(name for names in ROLES.values() for name in names)


def quality(findings: Findings) -> str:
    """What each model answers, and what is left of it."""
    seed = read_json(SEED)
    columns = {"model": "l", "whose": "l", f"loss, sum over batches of {BATCH}": "r", "loss, mean": "r",
               "accuracy [95 %]": "r", "points above the dense model [95 %]": "r", "S": "r", "edges kept": "r",
               "nodes dead, constant": "r"}
    rows = []
    for role, names in ROLES.items():
        rows.append(_theirs(role, seed))
        rows += [_ours(role, findings[name], findings) for name in names]
    return words.table(columns, rows) + "\n\n" + origins(
        _cells(findings), findings.size.name, NAME, kinds=("made",))


def speed(findings: Findings) -> str:
    """The seed's loop and the model alone in it, in seconds, and latencies beside the dense model's."""
    seed = read_json(SEED)
    columns = {"model": "l", "whose": "l", "whole loop, s": "r", "loop, of the dense model's": "r",
               "model alone, s": "r", "model, of the dense model's": "r", "run by": "l",
               **words.speed_columns(findings.batches)}
    rows = []
    for role, names in ROLES.items():
        rows.append([role, "seed project", *_their_loop(role, seed)])
        rows += [[role, f"`{name}`", *_our_loop(role, findings[name], findings)] for name in names]
    return words.table(columns, rows) + "\n\n" + origins(
        _cells(findings), findings.size.name, NAME, kinds=("timed",))


def _cells(findings: Findings) -> list[Finding]:
    return [findings[name] for name in CELLS]


def _of(seed: Mapping[str, Any], role: str) -> Mapping[str, Any]:
    return next(row for row in seed["rows"] if row["row"] == role)


def _theirs(role: str, seed: Mapping[str, Any]) -> list[str]:
    row, cut = _of(seed, role), seed["edges"]
    losses, mean = row["loss"], [loss / seed["batches"] for loss in row["loss"]]
    edges = f"{cut['of'] - cut['cut']} of {cut['of']}" if role.startswith("pruned") else words.NONE
    return [role, "seed project", _runs(losses, "{:.1f}"), _runs(mean, "{:.3f}"),
            _runs([100 * x for x in row["accuracy"]], "{:.2f} %"), words.NONE, words.NONE, edges, words.NONE]


def _runs(values: Sequence[float], pattern: str) -> str:
    """The first run, the second one in brackets."""
    first, *others = (pattern.format(value) for value in values)
    return first + "".join(f" ({other})" for other in others)


def _ours(role: str, found: Finding, findings: Findings) -> list[str]:
    if not found.result:
        return [role, f"`{found.name}`", words.OPEN]
    row, other = found.row, findings[compared_with(NAME, found.name)]
    return [role, f"`{found.name}`", f"{row['loss'] * row['images'] / BATCH:.1f}", f"{row['loss']:.3f}",
            words.accuracy(found.accuracy), _above(found, other), words.work(found), words.edges(found),
            words.nodes(found)]


def _above(found: Finding, other: Finding) -> str:
    difference = words.points(found.difference(other))
    return difference if difference == words.NONE else f"{difference} (`{other.name}`)"


def _dense(role: str) -> str:
    return role.replace("pruned", "baseline")


def _their_loop(role: str, seed: Mapping[str, Any]) -> list[str]:
    own, dense = _of(seed, role)["seconds"], _of(seed, _dense(role))["seconds"]
    shares = [100 * a / b for a, b in zip(own, dense, strict=True)]
    return [_runs(own, "{:.2f}"), words.NONE if role == _dense(role) else _runs(shares, "{:.1f} %")]


def _our_loop(role: str, found: Finding, findings: Findings) -> list[str]:
    if not found.latency:
        return [words.UNTIMED if found.result else words.OPEN]
    dense, loop = findings[ROLES[_dense(role)][0]], found.latency["loop"]
    cells = []
    for part in ("loop_s", "model_s"):
        same = dense is found or not dense.latency
        share = words.NONE if same else f"{100 * loop[part]['p50'] / dense.latency['loop'][part]['p50']:.1f} %"
        cells += [words.seconds(loop[part]), share]
    return [*cells, loop["runner"], *words.speeds(found, findings.batches)]
