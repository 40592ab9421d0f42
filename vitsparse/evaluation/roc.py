"""How well scores tell the edges of a known circuit from all others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..circuit import Circuit, EdgeScores
from ..errors import InputError


@dataclass(frozen=True)
class Roc:
    """``tpr[i]`` of the true and ``fpr[i]`` of the other edges have one of the i highest score levels.

    Both rise from 0 to 1. ``auc``, the area below, is the probability that a random true edge scores higher than a
    random other one, a tie counting one half (the statistic of Mann and Whitney).
    """

    auc: float
    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


def roc(scores: EdgeScores, circuit: Circuit) -> Roc:
    """The ROC curve of scores, ranked by magnitude as ``top_k`` does, against the known ``circuit``.

    1.0: the circuit is the top of the ranking; 0.5: a random one. Raises :class:`InputError` for another graph, and for
    a circuit of all edges or of none.
    """
    if scores.graph != circuit.graph:
        raise InputError("scores and circuit are of different graphs", where="roc", expected=circuit.graph,
                         found=scores.graph)
    true = circuit.keep
    if true.all() or not true.any():
        raise InputError("a circuit of all edges or of none cannot be told from the others", where="roc(circuit)",
                         expected="some edges kept, some cut", found=circuit)
    levels, level_of = np.unique(-np.abs(scores.values), return_inverse=True)  # highest score first
    hits, misses = (np.concatenate([[0], np.bincount(level_of[edges], minlength=len(levels)).cumsum()])
                    for edges in (true, ~true))
    twice_the_area = int((np.diff(misses) * (hits[1:] + hits[:-1])).sum())  # in whole pairs: exact
    return Roc(twice_the_area / (2 * int(hits[-1] * misses[-1])), tuple((misses / misses[-1]).tolist()),
               tuple((hits / hits[-1]).tolist()))
