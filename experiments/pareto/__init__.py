"""Accuracy against measured latency: ``budgeted`` circuits and what they have to beat, all trained alike."""

from ..journal import Cell
from ..making import pruned, smaller, torch_pruned, trained_again

NAME, START = "pareto", "dense-own"


def _pruned(method: str, budget: float, seed: int = 0) -> Cell:
    name = f"{method}-{budget:g}" + (f"-seed{seed}" if seed else "")
    return Cell(name, NAME, pruned(START, method, budget, seed), needs=(START,))


def _torch_pruned(budget: float) -> Cell:
    target = f"budgeted-{budget:g}"
    return Cell(f"torch-pruning-{budget:g}", NAME, torch_pruned(START, target), needs=(START, target))


FIRST = (
    Cell("dense-own+5", NAME, trained_again(START, "finetune"), needs=(START,)),
    _pruned("budgeted", 0.5), _pruned("budgeted", 0.33),
    _pruned("magnitude", 0.5), _pruned("importance", 0.5),
    Cell("smaller-0.5", NAME, smaller("budgeted-0.5", START), needs=(START, "budgeted-0.5")),
)
MORE = (
    _pruned("budgeted", 0.5, seed=1), _pruned("budgeted", 0.33, seed=1),
    _pruned("budgeted", 0.75), _pruned("budgeted", 0.25),
    _pruned("magnitude", 0.33), _pruned("importance", 0.33),
    _pruned("budgeted", 0.5, seed=2), _pruned("budgeted", 0.33, seed=2),
    _torch_pruned(0.5), _torch_pruned(0.33),
)
