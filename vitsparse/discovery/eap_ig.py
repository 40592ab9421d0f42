"""EAP-IG: edge attribution patching with integrated gradients (Hanna, Pezzelle and Belinkov, "Have Faith in
Faithfulness", 2024, arXiv:2403.17806; the path integral is that of Sundararajan et al., "Axiomatic Attribution for Deep
Networks", 2017). The gradient of EAP is replaced by its mean along a path from the ablated to the dense model.

    score(i -> j) = mean over images of  (a_i - s_i) . mean over k of dM/dr_j at step k

``inputs``: the embedding is ``a_input + (k/m) (s_input - a_input)``, k = 0 .. m-1, and the rest of the model follows
from it; s_i and a_i stay those of the dense run. So the path begins at the image's embedding replaced by the ablation
value of ``input``: the corrupted image's for a counterfactual ablation, the mean one (per token position), or zeros.
At all zeros a LayerNorm divides by the root of its ``eps``, so that one step outweighs the others: under zero ablation
prefer ``activations``. One forward and m forwards with backward.

``activations``: for the edges from a sub-block (``input``, the attention of a layer with all its heads, an MLP) only
what this sub-block writes is ``a + (k/m) (s - a)``, k = 1 .. m, everything before it being dense and everything behind
it following. Then the scores of all edges out of a sub-block add up, for large m, to metric(all of them cut) - metric
(dense): nothing is lost. O(m depth) passes, each from the sub-block on.

Most of the path is away from the dense model, so a metric that is flat there (``"kl"``) works. An OR gate whose inputs
are both on at every point of the path still scores 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..circuit import EdgeScores, Graph
from ..errors import InputError, nearest
from ..evaluation.ablation import Ablation
from ..evaluation.metrics import Metric, metric_named
from ..model.vit import ViT
from .attribution import Attribution
from .gradients import metric_sum
from .passes import Part, Passes, Trace

VARIANTS = ("inputs", "activations")


@torch.no_grad()
def eap_ig(model: ViT, batches: Iterable[tuple[Tensor, Tensor]], *, graph: Graph, ablation: Ablation,  # noqa: PLR0913
           metric: str | Metric = "kl", steps: int = 5, variant: str = "inputs",
           journal: str | os.PathLike | None = None, progress: bool = True) -> EdgeScores:
    """The score of every edge, float64 [E], from ``steps`` gradients along the path of ``variant``.

    ``batches``: re-iterable of images float [B, C, S, S] and labels int64 [B] (read only where the metric needs them).
    ``journal``: a file of the sum so far, from which the same search started again goes on. Under ``torchrun`` the
    ranks share the batches out. Raises :class:`InputError` for an unknown variant, less than one step, a metric without
    a gradient (``"accuracy"``), a graph of another shape or of operators, one-shot or empty batches, missing or
    impossible labels, scores that are no finite numbers, and a journal of another search.
    """
    if variant not in VARIANTS:
        raise InputError("unknown variant", where="variant", expected=f"one of {VARIANTS}", found=repr(variant),
                         remedy=nearest(str(variant), VARIANTS))
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError("the path needs at least one step", where="steps", expected="an integer >= 1", found=steps)
    task = Attribution("eap_ig", model, batches, graph, ablation, metric_named(metric),
                       {"steps": steps, "variant": variant})
    passes = Passes(model, graph, ablation)
    path = _inputs if variant == "inputs" else _activations

    def contribution(images: Tensor, labels: Tensor | None) -> Tensor:
        total = torch.zeros(graph.num_edges, dtype=torch.float64, device=images.device)
        for part in passes.parts(images, labels):
            dense_logits = passes.forward(part, passes.all_ones).logits.detach()
            for trace, edges in path(passes, part, steps):
                with torch.enable_grad():
                    value = metric_sum(task.metric, trace.logits, labels, dense_logits, part.images)
                total += passes.backward(trace, value, part.differences) * edges
        return total / steps

    return task.scores(contribution, journal, progress)


def _inputs(passes: Passes, part: Part, steps: int) -> Iterator[tuple[Trace, Tensor | float]]:
    """The runs of a path, and which edges they score."""
    for k in range(steps):
        yield passes.resume(part.embedded - (1 - k / steps) * part.differences[0]), 1.0


def _activations(passes: Passes, part: Part, steps: int) -> Iterator[tuple[Trace, Tensor]]:
    senders = torch.arange(len(passes.graph.senders), device=part.embedded.device)
    for stage, residual in enumerate(passes.residuals(part.embedded)):
        own = passes.writes(stage - 1)
        is_own = (senders >= own.start) & (senders < own.stop)
        edges = torch.cat([is_own[: reader.fan_in] for reader in passes.graph.reader_nodes])
        missing = part.differences[own].sum(0)
        for k in range(1, steps + 1):
            yield passes.resume(residual - (1 - k / steps) * missing, stage), edges
