"""What the latency benchmarks must reach: the rows of the table, and how a ratio is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vitsparse.evaluation.latency import Latency

MODEL = "vit_tiny_imagenet_p8_d256_l12_h8"
"""12 layers, width 256, 8 heads, 65 tokens: the model of the table."""
BATCHES = (1, 32)
Bound = tuple[float | None, float | None]  # target, aim


@dataclass(frozen=True)
class Row:
    """One comparison: ``ours`` with the fastest candidate that is ``theirs``, or ``theirs`` under some runtime.

    The ratio is a speed-up (their time over ours, to be at least the bound) or, with ``price``, our time over theirs
    (to be at most the bound). ``bounds`` are target and aim by batch; without one a row is only reported.
    """

    name: str
    ours: str
    theirs: str
    bounds: Mapping[int, Bound]
    price: bool = False

    def rivals(self, names: Mapping[str, object]) -> list[str]:
        """The candidates among ``names`` that ours is compared with."""
        return [name for name in names if name == self.theirs or name.startswith(f"{self.theirs} ")]

    def met(self, ratio: float, bound: float | None) -> bool | None:
        """Whether a ratio reaches a bound; None without one."""
        if bound is None:
            return None
        return ratio <= bound if self.price else ratio >= bound


NONE: Mapping[int, Bound] = {}
ROWS = (
    Row("half vs C", "half", "C half", {1: (1.0, 1.1), 32: (0.95, None)}),
    Row("half vs D", "half", "D", {1: (1.85, 2.0), 32: (1.9, None)}),
    Row("third vs D", "third", "D", {1: (2.4, 2.7), 32: (3.0, None)}),
    Row("lean vs D", "lean", "D", {1: (1.8, 2.1), 32: (1.9, 2.1)}),
    Row("mixed vs half", "mixed", "half", {1: (1.2, 1.1), 32: (1.2, 1.1)}, price=True),
    Row("found vs its nodes with all edges", "found", "found_nodes", {1: (1.15, None), 32: (1.15, None)}, price=True),
    Row("edges50 vs E", "edges50", "E", {1: (1.5, None), 32: (2.0, None)}),
    Row("full vs D", "full", "D", {1: (0.9, None), 32: (0.9, None)}),
    Row("third vs C", "third", "C third", NONE),
    Row("lean vs C", "lean", "C lean", NONE),
    Row("mixed vs C", "mixed", "C half", NONE),
    Row("found vs C", "found", "C found", NONE),
    Row("found vs D", "found", "D", NONE),
    Row("mixed vs D", "mixed", "D", NONE),
    Row("mixed vs half, both mean", "mixed, mean", "half, mean", NONE, price=True),
    Row("found vs its nodes, both mean", "found, mean", "found_nodes, mean", NONE, price=True),
    Row("half, mean vs zero", "half, mean", "half", NONE, price=True),
)


def ratio_of(row: Row, ours: np.ndarray, theirs: np.ndarray) -> Latency:
    """Quantiles over rounds [n] of the ratio within a round: what the machine did meanwhile, it did to both."""
    return Latency.of(ours / theirs if row.price else theirs / ours)


def compare(rows: tuple[Row, ...], batch: int, times: Mapping[str, np.ndarray]) -> Iterator[dict[str, object]]:
    """A result for each of ``rows`` whose candidates were measured; ``times`` are those of the rounds, by name."""
    medians = {name: float(np.median(values)) for name, values in times.items()}
    for row in rows:
        rivals = row.rivals(times)
        if row.ours not in times or not rivals:
            continue
        theirs = min(rivals, key=medians.__getitem__)
        ratio = ratio_of(row, times[row.ours], times[theirs])
        of_medians = medians[theirs] / medians[row.ours]
        target, aim = row.bounds.get(batch, (None, None))
        yield {"name": row.name, "batch": batch, "ours": row.ours, "theirs": theirs,
               "kind": "price" if row.price else "speed-up", "ratio": round(ratio.p50, 3),
               "p20": round(ratio.p20, 3), "p80": round(ratio.p80, 3),
               "ratio_of_medians": round(1 / of_medians if row.price else of_medians, 3), "n": ratio.n,
               "target": target, "aim": aim, "met": row.met(ratio.p50, target), "aim_met": row.met(ratio.p50, aim)}
