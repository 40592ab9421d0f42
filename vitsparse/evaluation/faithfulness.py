"""Does a circuit do what the model does? Faithfulness over circuit sizes, and completeness under knock-outs.

Faithfulness of a circuit C of a model M, with the metric m and the empty circuit (every edge ablated) as zero:

    f(C) = (m(C) - m(empty)) / (m(M) - m(empty))

It is 1 for the model itself, 0 for the empty circuit, and the same whether m grows or falls as a model gets worse: for
KL from the dense model, f(C) = 1 - KL(C) / KL(empty). Areas and fractions are those of the benchmark MIB (Mueller et
al., "MIB: A Mechanistic Interpretability Benchmark", 2025). A number means little without its ablation and granularity:
compare within one graph and one ablation only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..circuit import GRANULARITIES, Circuit, EdgeScores, Graph
from ..circuit.liveness import reaches_logits
from ..errors import InputError
from ..model.edgewise import Edgewise, ablation_constants, check_fits, edge_weights, edgewise_forward
from ..model.vit import ViT
from .ablation import Ablation
from .batches import pairs
from .evaluate import check_labels, device_of, eval_mode
from .metrics import Metric, metric_named

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Curve:
    """Circuits of growing size from one ranking of the edges: ``edges[i]`` of them, the share ``fractions[i]``.

    ``values`` are the ``metric`` of each circuit, ``empty`` and ``full`` that of the circuits without and with all
    edges; ``accuracy`` (0 to 1) is None where there were no labels.
    """

    metric: str
    fractions: tuple[float, ...]
    edges: tuple[int, ...]
    values: tuple[float, ...]
    empty: float
    full: float
    accuracy: tuple[float, ...] | None = None

    @property
    def faithfulness(self) -> tuple[float, ...]:
        """f of each circuit; beyond 1 where a circuit does better than the model by the metric."""
        return tuple((value - self.empty) / (self.full - self.empty) for value in self.values)

    @property
    def cpr(self) -> float:
        """Circuit performance ratio: the area under f over the fractions, linear in the fraction. More is better."""
        return _area(self.fractions, self.faithfulness)

    @property
    def cmd(self) -> float:
        """Circuit-model distance: the area of |1 - f|, linear in the fraction. Less is better."""
        return _area(self.fractions, [abs(1 - f) for f in self.faithfulness])

    def as_dict(self) -> dict[str, Any]:
        """The fields, f and the two areas as plain JSON values."""
        return {**asdict(self), "faithfulness": self.faithfulness, "cpr": self.cpr, "cmd": self.cmd}


def faithfulness_curve(model: ViT, batches: Iterable[tuple[Tensor, Tensor | None]], scores: EdgeScores, *,
                       ablation: Ablation, metric: str | Metric = "kl", fractions: Sequence[float] = FRACTIONS,
                       select: Callable[[EdgeScores, int], Circuit] = EdgeScores.top_k) -> Curve:
    """Metric, accuracy and faithfulness of the circuits of floor(fraction * E) edges that ``select`` makes of scores.

    ``select(scores, n)`` is ``EdgeScores.top_k`` or any such function (``EdgeScores.greedy``). ``batches``: re-iterable
    of images float [B, C, S, S] and labels int64 [B] (or None, if the metric needs none). Raises :class:`InputError`
    for fractions that do not grow from 0 to 1, for a model that is worth as much as the empty circuit, and for whatever
    :func:`circuit_metrics` refuses.
    """
    graph, fractions = scores.graph, tuple(float(fraction) for fraction in fractions)
    if not fractions or any(not a < b for a, b in itertools.pairwise((-1e-9, *fractions))) or fractions[-1] > 1:
        raise InputError("the fractions of edges must grow, between 0 and 1", where="fractions", found=fractions)
    edges = tuple(int(fraction * graph.num_edges + 1e-9) for fraction in fractions)
    keeps = [np.zeros(graph.num_edges), np.ones(graph.num_edges), *(select(scores, count).keep for count in edges)]
    metrics = [metric_named(metric)] + [metric_named("accuracy")] * _has_labels(batches)
    (empty, full, *values), *accuracies = circuit_metrics(
        model, batches, keeps, graph=graph, ablation=ablation, metrics=metrics).tolist()
    if not abs(full - empty) > 1e-12:
        raise InputError("faithfulness is not defined: the empty circuit is worth as much as the model",
                         where=f"metric {metrics[0].name}", found=f"{empty} and {full}",
                         remedy="choose another metric or ablation")
    accuracy = tuple(accuracies[0][2:]) if accuracies else None
    return Curve(metrics[0].name, fractions, edges, tuple(values), empty, full, accuracy)


@dataclass(frozen=True)
class Completeness:
    """The ``metric`` of the circuit and of the model under the same knock-outs, one entry each."""

    metric: str
    circuit: tuple[float, ...]
    model: tuple[float, ...]

    @property
    def gaps(self) -> tuple[float, ...]:
        """|m(C without K) - m(M without K)| of each knock-out K, in units of the metric."""
        return tuple(abs(c - m) for c, m in zip(self.circuit, self.model, strict=True))

    @property
    def mean(self) -> float:
        """The mean gap: small where the circuit holds all that the model can do the task with."""
        return float(np.mean(self.gaps))


def completeness(model: ViT, batches: Iterable[tuple[Tensor, Tensor | None]], circuit: Circuit, *,
                 ablation: Ablation, metric: str | Metric = "kl", knockouts: int = 20, seed: int = 0) -> Completeness:
    """How alike a circuit C and the model M fail when nodes of the circuit are knocked out (Wang et al. 2023, sec. 4).

    Each of the random knock-outs K is a set of senders of the circuit (never ``input``), every sender in it with
    probability 1/2; all edges out of K are cut, in the circuit and in the model. A circuit that lacks a backup (one
    input of an OR gate) is faithful, but it breaks where the model does not. Raises :class:`InputError` for a circuit
    without such senders and for whatever :func:`circuit_metrics` refuses.
    """
    graph, metric = circuit.graph, metric_named(metric)
    used = np.zeros(len(graph.senders), dtype=bool)
    for reader in graph.reader_nodes:
        used[: reader.fan_in] |= circuit.keep[reader.edges]
    used[0] = False
    if not used.any() or knockouts < 1:
        raise InputError("there is nothing to knock out", where="completeness",
                         expected="a circuit with a head or an MLP, knockouts >= 1",
                         found=f"{circuit}, knockouts={knockouts}")
    rng = np.random.default_rng(seed)
    gone = [used & (rng.random(len(used)) < 0.5) for _ in range(knockouts)]
    left = [np.concatenate([~nodes[: reader.fan_in] for reader in graph.reader_nodes]) for nodes in gone]
    values = circuit_metrics(model, batches, [*(circuit.keep & keep for keep in left), *left], graph=graph,
                             ablation=ablation, metrics=[metric])[0].tolist()
    return Completeness(metric.name, tuple(values[:knockouts]), tuple(values[knockouts:]))


@torch.no_grad()
def circuit_metrics(model: ViT, batches: Iterable[tuple[Tensor, Tensor | None]], keeps: Sequence[Any], *,
                    graph: Graph, ablation: Ablation, metrics: Sequence[str | Metric] = ("kl",)) -> np.ndarray:
    """[metrics, circuits] float64: means over all images of ``metrics`` for each of ``keeps`` (bool or float [E]).

    What the circuits share is computed once per batch (the dense logits, the embedding, the ablation constants), and
    sub-blocks that nobody reads are left out.
    Raises :class:`InputError` for a graph of another shape, batches that are one-shot or empty, an unknown metric, and
    labels that are missing where a metric needs them.
    """
    check_fits(model, graph)
    metrics = [metric_named(metric) for metric in metrics]
    totals, count = np.zeros((len(metrics), len(keeps))), 0
    with eval_mode(model):
        for index, (images, labels) in enumerate(pairs(batches, device_of(model))):
            dense_logits = model(images).double()
            if any(metric.needs_labels for metric in metrics):
                check_labels(labels, dense_logits.shape, where=f"batch {index}")
            forward = _forward(model, images, labels, graph, ablation)
            for column, keep in enumerate(keeps):
                logits = forward(edge_weights(keep, graph, like=images)).double()
                values = torch.stack([metric(logits, labels, dense_logits) for metric in metrics])
                totals[:, column] += values.double().cpu().numpy() * len(images)
            count += len(images)
    if not count:
        raise InputError("there are no images to evaluate on", where="batches", expected="at least one batch")
    return totals / count


def _forward(model: ViT, images: Tensor, labels: Any, graph: Graph, ablation: Ablation) -> Callable[[Tensor], Tensor]:
    """From the weights of edges [E] to logits [B, K], for these images."""
    if graph.granularity not in GRANULARITIES:  # operators share no sums of the residual stream
        return lambda keep: edgewise_forward(model, images, keep, graph=graph, ablation=ablation)
    edgewise = Edgewise(model, graph, ablation_constants(model, images, graph=graph, ablation=ablation, labels=labels))
    stack = edgewise.start(images)
    stack.put(1, torch.zeros_like(stack.first(1)).expand(len(graph.senders) - 1, -1, -1, -1))

    def forward(keep: Tensor) -> Tensor:
        # A stage that nobody reads has weight 0 wherever it counts, so what it wrote for another circuit may stay.
        alive = reaches_logits(graph, (keep != 0).cpu().numpy())
        for stage in range(edgewise.num_stages - 1):
            if alive[edgewise.writes(stage)].any():
                edgewise.run_stage(stack, stage, keep)
        return edgewise.logits(stack, keep)

    return forward


def _has_labels(batches: Any) -> bool:
    _, labels = next(pairs(batches, None), (None, None))
    return isinstance(labels, Tensor)


def _area(x: Sequence[float], y: Sequence[float]) -> float:
    """The trapezoid rule."""
    return sum((b - a) * (u + v) / 2 for (a, u), (b, v) in itertools.pairwise(zip(x, y, strict=True)))
