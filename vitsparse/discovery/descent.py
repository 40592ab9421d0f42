"""The search of :mod:`.budgeted`: from the whole model down to a latency, one round after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..circuit import Circuit
from ..circuit.liveness import reaches_logits
from .nodes import Cost, between_live_nodes, cut_share, edge_senders, edge_stages, live_kills, savings, without
from .objective import Objective
from .quadratic import Quadratic, Quadratics

FIELDS = ("latency_us", "value", "edges", "nodes_dead")  # of a point of the curve
HOPEFUL = 2.0  # kills that cost more than so many times what was expected are taken back in half,
HARMLESS = 1e-3  # unless it is less than so many nats
EDGES_AT_ONCE = 0.1  # of the edges between live nodes, in one round
EXCHANGES, FAILURES = 8, 2  # exchanges measured per round; rounds without success until the search ends
BETTER = 1e-3  # by which share the metric must fall for an exchange


@dataclass(frozen=True)
class Limits:
    """``latency`` to reach, and to save in a ``step``, in microseconds; the least share of ``cut_edges``."""

    latency: float
    step: float
    cut_edges: float


class Descent:
    """The circuit so far: ``keep``, its metric ``value`` and ``latency``; :meth:`advance` until it is ``done``.

    ``price`` is what the last round of kills paid for a microsecond. Edges into dead nodes stay: so it is known what a
    node would do if it came back.
    """

    def __init__(self, objective: Objective, quadratics: Quadratics, cost: Cost, limits: Limits, seed: int):
        self.graph, self.cost, self.limits = objective.graph, cost, limits
        self._objective, self._quadratics, self._seed = objective, quadratics, seed
        self._senders, self._stages = edge_senders(self.graph), edge_stages(self.graph)
        self.keep, self.value = np.ones(self.graph.num_edges, dtype=bool), objective.dense
        self.price, self.rounds, self.failures = 0.0, 0, 0
        self._points: list[list[float]] = []
        self._note()

    @property
    def latency(self) -> float:
        """Microseconds of the circuit so far."""
        return self._latency(self.keep)

    @property
    def done(self) -> bool:
        """Whether the circuit is within the limits and exchanges help no more."""
        return self._within(self.keep) and (self.failures >= FAILURES or self.keep.all())

    def advance(self) -> None:
        """One round: cut edges, then kill nodes; or exchange some once all limits are kept."""
        self.rounds += 1
        model = self._quadratics.around(self.keep, self._seed + self.rounds)
        if self._within(self.keep):
            changed = self._change_edges(model) or self._exchange(model)
            self.failures = 0 if changed else self.failures + 1
        else:
            before = self.keep
            self._change_edges(model)
            self._cut_as_many_as_must_be(model)
            self._kill_nodes(model, before & ~self.keep)
        self._note()

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that the next round depends on."""
        return {"keep": self.keep, "points": np.array(self._points),
                "numbers": np.array([self.value, self.price, self.rounds, self.failures])}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Be what :meth:`arrays` came from."""
        self.keep, self._points = arrays["keep"].astype(bool), arrays["points"].tolist()
        self.value, self.price = arrays["numbers"][:2].tolist()
        self.rounds, self.failures = map(int, arrays["numbers"][2:])

    def curve(self) -> list[dict[str, float]]:
        """A point for each round."""
        points = [dict(zip(FIELDS, point, strict=True)) for point in self._points]
        return [{**point, "share": point["latency_us"] / self.cost.dense, "edges": int(point["edges"]),
                 "nodes_dead": int(point["nodes_dead"])} for point in points]

    def _note(self) -> None:
        dead = len(self.graph.senders) - reaches_logits(self.graph, self.keep).sum()
        edges = (self.keep & between_live_nodes(self.graph, self.keep)).sum()
        self._points.append([self.latency, self.value, float(edges), float(dead)])

    def _latency(self, keep: np.ndarray) -> float:
        return self.cost.latency(Circuit(self.graph, keep))

    def _within(self, keep: np.ndarray) -> bool:
        return self._latency(keep) <= self.limits.latency and cut_share(self.graph, keep) >= self.limits.cut_edges

    # Edges. A cell is all edges of one sender into one stage: changed together, they leave the stage's readers alike.

    def _cells(self) -> tuple[np.ndarray, np.ndarray]:
        """[E], the cell of each edge between live nodes (-1: another edge); and how many edges each cell has."""
        stages = 2 * self.graph.depth + 1
        inside = between_live_nodes(self.graph, self.keep)
        cells = np.where(inside, self._senders * stages + self._stages, -1)
        return cells, np.bincount(cells[inside], minlength=len(self.graph.senders) * stages).astype(float)

    def _change_edges(self, model: Quadratic) -> bool:
        """Cut cells whose loss lowers the metric by more than their latency is worth; once within the limits, bring
        others back as well. Whether that made the circuit better."""
        within, (cells, sizes) = self._within(self.keep), self._cells()
        is_kept = np.bincount(cells[cells >= 0], self.keep[cells >= 0], len(sizes)) > 0
        changes = model.sums(cells, len(sizes)).signed(np.where(is_kept, -1.0, 1.0))
        order = changes.choose(sizes * (is_kept | within), EDGES_AT_ONCE * sizes.sum(), harmless=True)
        counts = dict.fromkeys(max(1, len(order) // part) for part in (1, 2, 4, 16)) if order else ()
        circuits = [self.keep ^ np.isin(cells, order[:count]) for count in counts]
        if not within:
            return self._take_best(circuits, self._merit(self.keep, self.value))
        return self._take_best([keep for keep in circuits if self._within(keep)], (1 - BETTER) * self.value)

    def _cut_as_many_as_must_be(self, model: Quadratic) -> None:
        """Cut the cells that hurt least per edge, so that on the way down the cut share grows as it must."""
        latency, dense, goal = self.latency, self.cost.dense, self.limits.latency
        must = self.limits.cut_edges * (1.0 if latency <= goal else max(0.0, dense - latency) / (dense - goal))
        missing = (must - cut_share(self.graph, self.keep)) * between_live_nodes(self.graph, self.keep).sum()
        if missing > 0:
            cells, _ = self._cells()
            cells = np.where(self.keep, cells, -1)
            sizes = np.bincount(cells[cells >= 0], minlength=1).astype(float)
            changes = model.sums(cells, len(sizes)).signed(-np.ones(len(sizes)))
            self.keep = self.keep & ~np.isin(cells, changes.choose(sizes, np.ceil(missing)))
            self.value, = self._objective.values([self.keep])

    def _take_best(self, circuits: Sequence[np.ndarray], least: float) -> bool:
        """Go to the best circuit if its merit is below ``least``; whether it is."""
        if not circuits:
            return False
        values = self._objective.values(circuits)
        merits = [self._merit(keep, value) for keep, value in zip(circuits, values, strict=True)]
        best = int(np.argmin(merits))
        if not merits[best] < least:
            return False
        self.keep, self.value = circuits[best], values[best]
        return True

    def _merit(self, keep: np.ndarray, value: float) -> float:
        """What is made small: the metric, and what it will cost to get rid of the latency that is too much."""
        return value + self.price * max(0.0, self._latency(keep) - self.limits.latency)

    # Nodes.

    def _kill_nodes(self, model: Quadratic, already_cut: np.ndarray) -> None:
        """Kill what hurts least per microsecond, until a step is saved; in half where that hurts more than expected."""
        latency = self.latency
        need = min(self.limits.step, latency - self.limits.latency)
        if need <= 0:
            return
        kills = live_kills(self.graph, self.keep)
        circuits = [without(self.graph, self.keep, kill) for kill in kills]
        nodes, overlap = self._changes(model, kills, -1.0)
        worth = savings(self.cost, self.graph, self.keep, list(zip(kills, circuits, strict=True)))
        order = nodes.choose(worth, need, after=-model.response[:, already_cut].sum(1), overlap=overlap)
        if not len(order):  # no node saves time by itself, which several together may
            order = np.array([np.argmax(worth)])
        while True:
            keep = np.logical_and.reduce([circuits[index] for index in order])
            value, = self._objective.values([keep])
            if len(order) == 1 or value - self.value <= max(HARMLESS, HOPEFUL * nodes.together(order)):
                break
            order = order[: len(order) // 2]
        saved = latency - self._latency(keep)
        self.price = max(0.0, value - self.value) / saved if saved > 0 else self.price
        self.keep, self.value = keep, value

    def _exchange(self, model: Quadratic) -> bool:
        """Bring nodes back in exchange for others that die; whether that made the circuit better."""
        kills = live_kills(self.graph, self.keep)
        alive = {sender for kill in kills for sender in kill}
        births = [(sender,) for sender in range(1, len(self.graph.senders)) if sender not in alive]
        circuits = [without(self.graph, self.keep, kill) for kill in kills]
        circuits += [self.keep | (self._senders == sender) for sender, in births]
        saved = savings(self.cost, self.graph, self.keep, list(zip([*kills, *births], circuits, strict=True)))
        worth, price = saved[: len(kills)], -saved[len(kills):]
        (dying, overlap), (born, _) = self._changes(model, kills, -1.0), self._changes(model, births, 1.0)
        slack, found = self.limits.latency - self.latency, []
        for kill in range(len(kills)):
            more = born.fill(price, slack + worth[kill], after=dying.response[:, kill])
            found.append(([kill], more))
        for birth in range(len(births)):
            fewer = dying.choose(worth, price[birth] - slack, after=born.response[:, birth], overlap=overlap)
            found.append((fewer, [birth]))
        both = Quadratic(np.concatenate([dying.slope, born.slope]), np.hstack([dying.response, born.response]))
        found.sort(key=lambda pair: both.together([*pair[0], *(len(kills) + birth for birth in pair[1])]))
        exchanged = {}
        for dead, back in found:
            keep = np.logical_and.reduce([self.keep, *(circuits[kill] for kill in dead)])
            keep = np.logical_or.reduce([keep, *(circuits[len(kills) + birth] & ~self.keep for birth in back)])
            if len(exchanged) < EXCHANGES and self._within(keep):
                exchanged[keep.tobytes()] = keep
        return self._take_best(list(exchanged.values()), (1 - BETTER) * self.value)

    def _changes(self, model: Quadratic, nodes: Sequence[Sequence[int]], sign: float) -> tuple[Quadratic, np.ndarray]:
        """What it does to cut (-1) or bring back (+1) all edges out of each of ``nodes``; and which of them overlap."""
        count = len(self.graph.senders)
        concerned = self.keep if sign < 0 else ~np.isin(self._senders, np.unique(self._senders[self.keep]))
        member = np.array([np.isin(np.arange(count), group) for group in nodes], dtype=float).reshape(-1, count)
        changes = model.sums(np.where(concerned, self._senders, -1), count).times(sign * member.T)
        return changes, member @ member.T > 0
