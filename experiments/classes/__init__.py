"""The circuit of ten chosen classes: how small and fast it gets at equal accuracy on them."""

from ..journal import Cell
from ..making import pruned, task_of_chosen

NAME, START = "classes", "dense-own"
CELLS = (
    Cell("classes-dense", NAME, task_of_chosen(START), needs=(START,), of_chosen=True),
    *(Cell(f"classes-{budget:g}", NAME, pruned(START, "budgeted", budget), needs=(START,), of_chosen=True)
      for budget in (0.5, 0.33, 0.25, 0.15)),
)
