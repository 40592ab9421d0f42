"""The page of the experiments: text by hand, and between two comments what is generated."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from vitsparse.errors import InputError, nearest

from . import baselines, classes, headline, pareto, seed_table, targets
from .findings import Findings
from .pictures import stem

_PART = re.compile(r"(<!-- generated: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: Path, findings: Mapping[str, Findings], drawn: Mapping[tuple[str, str], bool], *,
           whole: bool = True) -> str:
    """The text of ``page`` with the parts of the sizes in ``findings`` made anew; ``drawn``: whether (experiment, size)
    has a picture. :class:`InputError` where a part has no maker, or no place on a page that must be ``whole``."""
    text = page.read_text(encoding="utf-8")
    shown = {(found[2], found[3]) for found in _PART.finditer(text)}
    missing = {(name, size) for name in (MAKERS.keys() - FRONT if whole else ()) for size in findings} - shown
    if missing or text.count("<!-- generated:") != len(_PART.findall(text)):
        raise InputError("the page does not show all parts", where=page,
                         expected="<!-- generated: NAME SIZE --> and <!-- end --> for each", found=sorted(missing))

    def part(found: re.Match[str]) -> str:
        start, name, size, end = found.groups()
        if name not in MAKERS:
            raise InputError("the page asks for a part that nothing makes", where=f"{page}: {name}",
                             expected=", ".join(MAKERS), remedy=nearest(name, MAKERS))
        if size not in findings:
            return found[0]
        return f"{start}{MAKERS[name](findings[size], drawn)}\n{end}"

    return _PART.sub(part, text)


def _picture(experiment: str) -> Callable[[Findings, Mapping[tuple[str, str], bool]], str]:
    def make(findings: Findings, drawn: Mapping[tuple[str, str], bool]) -> str:
        size = findings.size.name
        if not drawn.get((experiment, size)):
            return "No picture yet: not yet run."
        return f"![Accuracy over measured speed, {experiment}, size {size}]({stem(experiment, size)}.png)"

    return make


def _table(make: Callable[[Findings], str]) -> Callable[[Findings, Mapping[tuple[str, str], bool]], str]:
    return lambda findings, drawn: make(findings)


MAKERS = {"targets": _table(targets.table), "baselines": _table(baselines.cells), "recipes": _table(baselines.recipes),
          "seed_table": _table(seed_table.quality), "seed_speed": _table(seed_table.speed),
          "pareto": _table(pareto.cells), "seeds": _table(pareto.seeds), "pareto_picture": _picture("pareto"),
          "classes": _table(classes.cells), "classes_picture": _picture("classes"), "headline": _table(headline.table)}
FRONT = {"headline"}
"""What stands on the project's own page."""
