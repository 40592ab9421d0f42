"""The metric of one circuit after another over the same images, running again only what a cut changes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..circuit import Graph
from ..circuit.liveness import depends_on, reaches_logits
from ..errors import InputError
from ..evaluation.ablation import Ablation
from ..evaluation.batches import pairs
from ..evaluation.evaluate import check_labels, device_of
from ..evaluation.metrics import metric_named
from ..model.edgewise import Edgewise, Stack, ablation_constants, corrupted, sender_outputs
from ..model.vit import ViT

CACHE_BYTES = 2 * 2**30
"""How much of the senders' outputs is held from one forward to the next; batches beyond it start from their images."""


@dataclass
class _Batch:
    """One batch: ``corrupted`` images only for a counterfactual ablation; what to resume from (None where the cache is
    full); and what the last run wrote over, by position on the stack."""

    images: Tensor
    labels: Tensor
    corrupted: Tensor | None
    dense_logits: Tensor
    resume: tuple[Edgewise, Stack] | None = None
    before: dict[int, Tensor] = field(default_factory=dict)


class Objective:
    """The metric of a current circuit, and of the current circuit with one more edge cut: means over all images.

    What the senders write under the current circuit is held in memory (up to :data:`CACHE_BYTES`). A cut runs only the
    stages that it changes and that still have a kept path to ``logits``; every other sender either gets exactly the
    same input as before or has weight 0 in every sum that matters. So the metric is that of a whole run, bit by bit (as
    long as activations are finite).

    ``dense`` is the metric with all edges kept, which is the current circuit at first. Batches are read once, on
    construction; gradients must be off and the model in the mode that is wanted. Raises :class:`InputError` for batches
    that are one-shot, empty or do not fit the model, an unknown metric, and a ``dense`` that is no finite number.
    """

    def __init__(self, model: ViT, batches: Iterable[tuple[Tensor, Tensor]], graph: Graph, ablation: Ablation,
                 metric: str):
        self.graph, self._model, self._ablation = graph, model, ablation
        self._metric = metric_named(metric)
        self._batches = [self._load(images, labels, f"batch {index}")
                         for index, (images, labels) in enumerate(pairs(batches, device_of(model)))]
        self.num_images = sum(len(batch.images) for batch in self._batches)
        if not self.num_images:
            raise InputError("there are no images to search with", where="batches", expected="at least one batch")
        self._fill_cache()
        self._reader_of = [reader for reader in graph.reader_nodes for _ in range(reader.fan_in)]
        self.dense = self.restart(np.ones(graph.num_edges, dtype=bool))
        if not math.isfinite(self.dense):
            raise InputError(f"the {metric} of the dense model is no finite number", where="model or batches",
                             found=self.dense, remedy="look for NaN in the images and the weights")

    def restart(self, keep: np.ndarray) -> float:
        """Make ``keep`` (bool [E]) the current circuit by a whole run; its metric. There is no undoing it."""
        value = self._run(keep, np.ones(len(self.graph.senders), dtype=bool))
        for batch in self._batches:
            batch.before.clear()
        return value

    def cut(self, keep: np.ndarray, edge: int) -> float:
        """The metric of ``keep``: the current circuit without ``edge``, which is the current circuit from now on."""
        changed = depends_on(self.graph, keep, self._reader_of[edge].drives)
        return self._run(keep, changed & reaches_logits(self.graph, keep))

    def undo(self) -> None:
        """Go back to the circuit before the last :meth:`cut`."""
        for batch in self._batches:
            for position, outputs in batch.before.items():
                batch.resume[1].put(position, outputs)
            batch.before.clear()

    def matters(self, keep: np.ndarray, edge: int) -> bool:
        """Whether the reader of ``edge`` has a kept path to ``logits``; if not, cutting changes no bit of any logit."""
        reader = self._reader_of[edge]
        return reader.kind == "logits" or bool(reaches_logits(self.graph, keep)[list(reader.drives)].any())

    def digest(self) -> str:
        """Hex sha256 over images, labels and corrupted images, batch by batch."""
        digest = hashlib.sha256()
        for batch in self._batches:
            for tensor in (batch.images, batch.labels, batch.corrupted):
                if tensor is not None:
                    digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
                    digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def _run(self, keep: np.ndarray, wanted: np.ndarray) -> float:
        """The metric of ``keep`` after bringing up to date the stages with a ``wanted`` sender (bool [S])."""
        total = 0.0
        for batch in self._batches:
            logits = self._logits(batch, keep, wanted).double()
            total = total + self._metric(logits, batch.labels, batch.dense_logits) * len(batch.images)
        return float(total) / self.num_images

    def _logits(self, batch: _Batch, keep: np.ndarray, wanted: np.ndarray) -> Tensor:
        """Logits [B, K] of one batch."""
        weights = torch.as_tensor(keep).to(batch.images)
        batch.before.clear()
        if batch.resume is None:
            edgewise, stack = self._start(batch)
            return edgewise.resume(stack, 0, weights)
        edgewise, stack = batch.resume
        for stage in range(edgewise.num_stages - 1):
            senders = edgewise.writes(stage)
            if wanted[senders].any():
                batch.before[senders.start] = stack.first(senders.stop)[senders.start:].clone()
                edgewise.run_stage(stack, stage, weights)
        return edgewise.logits(stack, weights)

    def _load(self, images: Tensor, labels: Tensor, where: str) -> _Batch:
        logits = self._model(images)
        check_labels(labels, logits.shape, where=where)
        counterfactual = None if self._ablation.corrupt is None else corrupted(self._ablation, images, labels)
        return _Batch(images, labels, counterfactual, logits.double())

    def _start(self, batch: _Batch) -> tuple[Edgewise, Stack]:
        if batch.corrupted is not None:
            constants = sender_outputs(self._model, batch.corrupted, self.graph)
        else:
            constants = ablation_constants(self._model, batch.images, graph=self.graph, ablation=self._ablation)
        edgewise = Edgewise(self._model, self.graph, constants)
        return edgewise, edgewise.start(batch.images)

    def _fill_cache(self) -> None:
        config, left = self._model.config, CACHE_BYTES
        per_image = len(self.graph.senders) * config.num_tokens * config.embed_dim
        for batch in self._batches:
            copies = 2 if batch.corrupted is None else 3  # with what an undo needs, and with constants of their own
            left -= copies * per_image * len(batch.images) * batch.dense_logits.element_size()
            if left >= 0:
                batch.resume = self._start(batch)
