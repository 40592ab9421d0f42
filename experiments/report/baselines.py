"""The two dense models, and what changed from the seed's recipe to ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitsparse.training.recipe import FREE_FIELDS

from ..journal import plain_values
from . import words
from .findings import Finding, Findings, compared_with, origins

NAME, RECIPES = "baselines", {"dense-seed": "the seed's", "dense-own": "ours"}


def cells(findings: Findings) -> str:
    """Accuracy, and what the training took."""
    other = findings[compared_with(NAME, "")]
    columns = {"recipe": "l", "cell": "l", "accuracy [95 %]": "r", f"points above `{other.name}` [95 %]": "r",
               "loss": "r", "validation accuracy, last epoch": "r", "epochs": "r", "images/s": "r",
               "training, s": "r", "with validation, s": "r"}
    rows = [[recipe, f"`{name}`", *_measured(findings[name], other)] for name, recipe in RECIPES.items()]
    return words.table(columns, rows) + "\n\n" + origins(findings.of(NAME), findings.size.name, NAME)


def _measured(found: Finding, other: Finding) -> list[str]:
    if not found.result:
        return [words.OPEN]
    training = found.result["training"]
    return [words.accuracy(found.accuracy), words.points(found.difference(other)), f"{found.row['loss']:.3f}",
            words.percent(training["val_accuracy"][-1]), str(training["epochs"]),
            f"{training['images_per_second']:,.0f}", f"{training['seconds']:,.0f}",
            f"{training['seconds_with_validation']:,.0f}" if in_one_go(training) else words.NONE]


def in_one_go(training: Mapping[str, Any]) -> bool:
    """Whether the time with validation is that of the whole training: one that was resumed counts the last stay alone,
    while the seconds of its epochs count all."""
    return training["seconds_with_validation"] >= training["seconds"]


MEANINGLESS = {"recipe_name", *(f"recipe.{field}" for field in FREE_FIELDS)}
"""Settings that decide no result."""


def recipes(findings: Findings) -> str:
    """The settings in which the two differ, as the result files have them."""
    found = [findings[name] for name in RECIPES]
    if any(one.result is None for one in found):
        return f"What changed: {words.OPEN}."
    theirs, ours = (dict(plain_values(one.result["settings"])) for one in found)
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name) and name not in MEANINGLESS]
    rows = [[f"`{name}`", theirs.get(name, words.NONE), ours.get(name, words.NONE)] for name in names]
    return words.table({"setting": "l", "the seed's recipe": "l", "ours": "l"}, rows)
