"""What was to be reached, beside what was: each line computed from the result files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from vitsparse.circuit.files import read_json

from ..pareto import NAME
from . import words
from .baselines import in_one_go
from .findings import Finding, Findings, Spread
from .pareto import BASE, OURS
from .seed_table import SEED

Line = tuple[str, str, str]  # target, measured, met?

OWN_ACCURACY, OWN_AIM = 0.45, 0.50
SPEED_AT, AIM_AT_2 = {2: 1.85, 3: 2.6}, 2.0  # S: times as fast, at every batch size
POINTS_AT_3, POINTS_FAR = 0.01, 0.03
MINUTES = 5
NO_TARGET = "no target at this size"


def table(findings: Findings) -> str:
    lines = [*_pruned(findings), *_baselines(findings)]
    return words.table({"target": "l", "measured": "l", "met": "l"}, lines)


def pruned_within(findings: Findings) -> list[Finding]:
    """Our circuits of the first random seed, from the largest budget to the smallest."""
    done = [found for found in _ours(findings) if found.kind()[2] == 0]
    return sorted(done, key=lambda found: -found.kind()[1])


def _ours(findings: Findings) -> list[Finding]:
    return [found for found in findings.of(NAME) if found.kind()[0] == OURS and found.result and found.row["S"]]


def _pruned(findings: Findings) -> Iterator[Line]:
    base, done = findings[BASE], _ours(findings)
    yield ("S >= 2: no loss that a paired interval can tell from zero",
           *_judged(done, 2, lambda found: found.difference(base), lambda x: x[2] >= 0))
    yield (f"S >= 3: within {100 * POINTS_AT_3:g} point",
           *_judged(done, 3, lambda found: found.difference(base), lambda x: x[1] >= -POINTS_AT_3))
    yield (f"how far S goes within {100 * POINTS_FAR:g} points", _farthest(done, base), words.NONE)
    for least, target in SPEED_AT.items():
        aim = f" (aim {AIM_AT_2:g})" if least == 2 else ""
        for batch in findings.batches:
            yield (f"S >= {least}: {target:g} times as fast{aim} at batch {batch}",
                   *_judged(done, least, lambda found, batch=batch: found.speedup(batch),
                            lambda x, target=target: x[1] >= target, words.times))


def at_least(least: float, done: Sequence[Finding]) -> list[Finding]:
    """Which cells stand for "S >= least": those of the largest budget that has any, all their random seeds. The rule
    is older than the results, and it does not look at accuracy."""
    enough = [found for found in done if found.row["S"] >= least]
    largest = max((found.kind()[1] for found in enough), default=None)
    return [found for found in enough if found.kind()[1] == largest]


def _points(difference: Spread | None) -> str:
    return f"{words.points(difference)} points"


def _judged(done: Sequence[Finding], least: float, measure: Callable[[Finding], Spread | None],
            met: Callable[[Spread], bool], say: Callable[[Spread | None], str] = _points) -> tuple[str, str]:
    """(measured, met?) over the cells that stand for ``least``: yes or no where all agree."""
    found = at_least(least, done)
    values = [(one, value) for one in found if (value := measure(one)) is not None]
    if not values:
        why = words.OPEN if not done else "not yet measured" if found else f"no `{OURS}` cell so far has S >= {least}"
        return why, words.NONE
    good = sum(met(value) for _, value in values)
    told = "<br>".join(f"`{one.name}`, S {one.row['S']:.2f}: {say(value)}" for one, value in values)
    return told, "yes" if good == len(values) else "no" if not good else f"{good} of {len(values)}"


def _farthest(done: Sequence[Finding], base: Finding) -> str:
    within = [found for found in done if (lost := found.difference(base)) and lost[1] >= -POINTS_FAR]
    if not within:
        return words.OPEN if not done else f"no `{OURS}` cell is within it"
    best = max(within, key=lambda found: found.row["S"])
    return f"S {best.row['S']:.2f}: `{best.name}`, {_points(best.difference(base))}"


def _baselines(findings: Findings) -> Iterator[Line]:
    has_target = findings.size.name == "full"
    seeds = max(next(row for row in read_json(SEED)["rows"] if row["row"] == "baseline")["accuracy"])
    aim = f" (aim {100 * OWN_AIM:g})"
    for name, least, what in (("dense-seed", seeds, "the seed's recipe"), ("dense-own", OWN_ACCURACY, "our recipe")):
        target = f"{what}: {words.percent(least)}{aim if name == 'dense-own' else ''}"
        found = findings[name]
        if not found.result:
            yield target if has_target else f"{what}: {NO_TARGET}", words.OPEN, words.NONE
        elif has_target:
            yield target, words.accuracy(found.accuracy), "yes" if found.accuracy[1] >= least else "no"
        else:
            yield f"{what}: {NO_TARGET}", words.accuracy(found.accuracy), words.NONE
    if has_target:
        yield _minutes(findings["dense-own"])


def _minutes(found: Finding) -> Line:
    """The whole training, validation and data included, which counts only on a GPU."""
    target = f"full training on one GPU, data pipeline included: under {MINUTES} minutes"
    if not found.result:
        return target, words.OPEN, words.NONE
    training, gpu = found.result["training"], found.result["machine"]["gpu"]
    seconds, whole = max(training["seconds_with_validation"], training["seconds"]), in_one_go(training)
    measured = f"{seconds / 60:.1f} minutes on {gpu or 'no GPU'}{'' if whole else ', resumed: validation left out'}"
    late = seconds >= 60 * MINUTES
    return target, measured, words.NONE if not gpu or not (whole or late) else "no" if late else "yes"
