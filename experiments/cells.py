"""All cells in the order in which they are run: what is needed most comes first, so that a short stay counts."""

from __future__ import annotations

from . import classes, pareto, seed_table
from .journal import Cell
from .making import trained

BASELINES = (Cell("dense-seed", "baselines", trained("seed")), Cell("dense-own", "baselines", trained("own")))

CELLS = (*BASELINES, *seed_table.CELLS, *pareto.FIRST, *classes.CELLS, *pareto.MORE)


def cells_of(experiment: str | None) -> tuple[Cell, ...]:
    """Those of one experiment and all that they start from, in order; None: all."""
    if experiment is None:
        return CELLS
    wanted: set[str] = set()
    for cell in reversed(CELLS):
        if cell.experiment == experiment or cell.name in wanted:
            wanted |= {cell.name, *cell.needs}
    return tuple(cell for cell in CELLS if cell.name in wanted)
