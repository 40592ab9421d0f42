"""The metric of one circuit after another over the same images, running again only what differs.

A search cuts edges of one reader after another. While it is at reader j, nothing changes but the input of j and what
depends on j. So the part of every later input that does not is summed once (:mod:`.forward`), the input of j is the
old one plus ``a_i - s_i`` for each cut edge, and only what depends on j and is still seen runs (:mod:`.route`), for
several circuits at a time where there is too little work in one.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..circuit import Graph
from ..circuit.graph import Reader
from ..circuit.liveness import reaches_logits
from ..circuit.operator import OPERATOR
from ..data.ranks import ranks
from ..errors import InputError
from ..evaluation.ablation import Ablation
from ..evaluation.metrics import Metric, metric_named
from ..model.edgewise import ablation_constants, edgewise_forward, sender_outputs
from ..model.vit import ViT
from .chunks import ROWS, Chunk, cache_bytes, digest, load
from .forward import Forward, Shape, Workspace
from .route import Route
from .stages import Outputs


def objective_of(model: ViT, batches: Iterable[tuple[Tensor, Any]], graph: Graph, ablation: Ablation,
                 metric: str | Metric, *, lookahead: int | None = None) -> Objective | WholeObjective:
    """The objective that suits the graph: the nodes of an operator graph read no sums, so that nothing is shared."""
    if graph.granularity == OPERATOR:
        return WholeObjective(model, batches, graph, ablation, metric)
    return Objective(model, batches, graph, ablation, metric, lookahead=lookahead)


class WholeObjective:
    """The metric of circuits of a model, each a mean over all images and by a whole run of the definition.

    ``batches`` are read once and held, and how images are cut into batches does not matter. Gradients must be off, and
    the model in the mode that is wanted. ``dense`` is the metric with all edges kept. Under torchrun every rank
    measures its part of the circuits, so all ranks must ask for the same. Raises :class:`InputError` for batches that
    are one-shot, empty or do not fit the model, labels that the metric needs and that do not fit, and a ``dense`` that
    is no finite number.
    """

    def __init__(self, model: ViT, batches: Iterable[tuple[Tensor, Any]], graph: Graph, ablation: Ablation,
                 metric: str | Metric):
        self.graph, self._model, self._ablation = graph, model, ablation
        self._metric = metric_named(metric)
        self._chunks = load(model, batches, ablation, self._metric)
        self.num_images = sum(len(chunk.images) for chunk in self._chunks)
        self.keep = np.ones(graph.num_edges, dtype=bool)
        self._start()
        self.dense = self._whole(self.keep)
        if not math.isfinite(self.dense):
            raise InputError(f"the {self._metric.name} of the dense model is no finite number", found=self.dense,
                             where="model or batches", remedy="look for NaN in the images and the weights")

    @property
    def blocks(self) -> list[range]:
        """Edges that are best tried one after another, in canonical order: all of them matter, or none does."""
        turns = np.flatnonzero(np.diff(self.graph.shape_only)) + 1
        return [range(*ends) for ends in itertools.pairwise([0, *turns.tolist(), self.graph.num_edges])]

    @property
    def at_once(self) -> int:
        """How many circuits are measured in the time of one."""
        return ranks().world

    def turn_to(self, edge: int) -> None:
        """Make ready for circuits with cuts into the reader of ``edge``."""

    def values(self, keeps: Sequence[np.ndarray]) -> list[float]:
        """The metric of each circuit (bool [E]); the current circuit stays what it is."""
        found = self._values([keeps[index] for index in ranks().part(len(keeps))], keeps)
        return [value for part in ranks().gather(found) for value in part]

    def adopt(self, keep: np.ndarray) -> None:
        """Make ``keep`` (bool [E]) the current circuit."""
        self.keep = keep.copy()

    def matters(self, edge: int) -> bool:
        """Whether cutting ``edge`` can change a logit of the current circuit at all."""
        return not self.graph.shape_only[edge]

    def digest(self) -> str:
        """Hex sha256 over the data that the metric reads."""
        return digest(self._chunks)

    def _start(self) -> None:
        """What has to be there before the first run."""

    def _values(self, mine: Sequence[np.ndarray], keeps: Sequence[np.ndarray]) -> list[float]:
        """The metric of the circuits ``mine``, this rank's of ``keeps``."""
        return [self._whole(keep) for keep in mine]

    def _whole(self, keep: np.ndarray) -> float:
        total = sum(self._measure(self._run(keep, chunk).double(), chunk) for chunk in self._chunks)
        return float(total) / self.num_images

    def _run(self, keep: np.ndarray, chunk: Chunk) -> Tensor:
        ablation = self._ablation
        if chunk.replaced is not None:
            ablation = replace(ablation, corrupt=lambda images, labels: chunk.replaced)
        return edgewise_forward(self._model, chunk.images, keep, graph=self.graph, ablation=ablation)

    def _measure(self, logits: Tensor, chunk: Chunk) -> Tensor:
        """The sum of the metric over the images of a chunk."""
        return self._metric(logits, chunk.labels, chunk.dense_logits) * len(chunk.images)


class _Focus:
    """A reader whose edges are being cut; ``cuts`` are the senders cut since it came into focus, in that order."""

    def __init__(self, model: ViT, graph: Graph, keep: np.ndarray, reader: Reader):
        self.keep, self.reader, self.cuts = keep.copy(), reader, []
        self.forward = Forward(model, graph, Route.through(graph, keep, reader))

    def logits(self, variants: Sequence[Sequence[int]], chunk: Chunk, work: Workspace) -> Tensor:
        """[K, B, classes]: for each of K variants, with these senders cut off as well."""
        if chunk.given is None:
            chunk.fixed = self.forward.fixed(chunk.base, chunk.constants)
            chunk.given = self.forward.given(self.keep, chunk.base, chunk.constants).double()
            chunk.given = chunk.without(self.cuts)
        given = torch.stack([chunk.without(senders) for senders in variants]).to(chunk.images)
        outputs = work.outputs(self.forward.route.changed, len(variants) * len(chunk.images))
        return self.forward.logits(chunk.fixed, given, outputs).unflatten(0, (len(variants), -1))


class Objective(WholeObjective):
    """The same metrics for graphs whose readers read sums of senders, mostly by a part of a run.

    :meth:`values` measures circuits; those that differ from the current one by cuts into one reader are quick, and the
    quicker the later the reader. At first the current circuit keeps all edges. ``lookahead`` is how many circuits go
    through one forward (None: one on a CPU, on a GPU as many as fill :data:`~vitsparse.discovery.chunks.ROWS`).
    """

    def __init__(self, model: ViT, batches: Iterable[tuple[Tensor, Any]], graph: Graph, ablation: Ablation,
                 metric: str | Metric, *, lookahead: int | None = None):
        self._lookahead, self._focus = lookahead, None
        super().__init__(model, batches, graph, ablation, metric)
        self._adopt_whole(self.keep)

    def _start(self) -> None:
        graph, model, first = self.graph, self._model, self._chunks[0].images
        self._shape = Shape(model, graph)
        self._reader_of = [reader for reader in graph.reader_nodes for _ in range(reader.fan_in)]
        self._work = Workspace(self._shape, model.pos_embed)
        if self._lookahead is None:  # on a CPU a run costs what it computes, and a wrong guess would be for nothing
            rows = len(first) * self._shape.tokens
            self._lookahead = max(1, ROWS["cuda"] // rows) if first.device.type == "cuda" else 1
        self._constants = None
        if self._ablation.corrupt is None:
            self._constants = self._shape.split(ablation_constants(model, first, graph=graph, ablation=self._ablation))
        self._make_room()

    @property
    def blocks(self) -> list[range]:
        """The edges of each reader, in canonical order."""
        return [range(reader.edges.start, reader.edges.stop) for reader in self.graph.reader_nodes]

    @property
    def at_once(self) -> int:
        """How many circuits with cuts into one reader are measured in about the time of one."""
        return ranks().world * self._lookahead

    def turn_to(self, edge: int) -> None:
        """Make ready for circuits with cuts into the reader of ``edge``: sum once what they do not change."""
        self._look_at(self._reader_of[edge])

    def adopt(self, keep: np.ndarray) -> None:
        """Make ``keep`` (bool [E]) the current circuit: quick after cuts into one reader, else a whole run."""
        reader = self._reader_of_cuts([keep])
        if reader is None:
            self._adopt_whole(keep)
        elif self._is_live(reader):
            self._look_at(reader)
            senders = self._cuts(reader, keep)
            self._focus.cuts += senders
            for chunk in self._chunks:
                if chunk.given is not None:
                    chunk.given = chunk.without(senders)
        super().adopt(keep)

    def matters(self, edge: int) -> bool:
        """Whether the reader of ``edge`` has a kept path to ``logits``; if not, cutting it changes no logit at all."""
        return self._is_live(self._reader_of[edge])

    def _values(self, mine: Sequence[np.ndarray], keeps: Sequence[np.ndarray]) -> list[float]:
        reader = self._reader_of_cuts(keeps)
        if reader is None:
            return super()._values(mine, keeps)
        self._look_at(reader)
        cuts = [self._cuts(reader, keep) for keep in mine]
        return [value for first in range(0, len(cuts), self._lookahead)
                for value in self._variants(cuts[first: first + self._lookahead])]

    def _is_live(self, reader: Reader) -> bool:
        return reader.kind == "logits" or bool(reaches_logits(self.graph, self.keep)[list(reader.drives)].any())

    def _reader_of_cuts(self, keeps: Sequence[np.ndarray]) -> Reader | None:
        """The one reader into which all of ``keeps`` have cuts, compared with the current circuit; None: no such."""
        differs = np.flatnonzero(np.any([keep != self.keep for keep in keeps], axis=0))
        if not len(differs):
            return None if self._focus is None else self._focus.reader
        reader = self._reader_of[differs[0]]
        return reader if differs[-1] < reader.edges.stop and self.keep[differs].all() else None

    def _cuts(self, reader: Reader, keep: np.ndarray) -> list[int]:
        """The senders whose edges into ``reader`` are kept now and cut in ``keep``, the last one first."""
        return np.flatnonzero(self.keep[reader.edges] & ~keep[reader.edges])[::-1].tolist()

    def _look_at(self, reader: Reader) -> None:
        """Bring ``reader`` into focus; what the cuts into the one before changed is written down first."""
        if self._focus is not None and self._focus.reader == reader:
            return
        if self._focus is not None and self._focus.cuts:
            for chunk in self._chunks:
                if chunk.base is not None:
                    self._focus.logits([()], chunk, self._work)
                    self._work.copy_to(chunk.base)
        self._turn_to(_Focus(self._model, self.graph, self.keep, reader))

    def _turn_to(self, focus: _Focus | None) -> None:
        self._focus = focus
        for chunk in self._chunks:
            chunk.fixed = chunk.given = None

    def _variants(self, cuts: Sequence[Sequence[int]]) -> list[float]:
        """The metric of the current circuit with further cuts into the reader in focus, all of them in one forward."""
        total = 0.0
        for chunk in self._chunks:
            logits = self._focus.logits(cuts, self._filled(chunk, self._focus.keep), self._work).double()
            total = total + torch.stack([self._measure(variant, chunk) for variant in logits])
        return (total / self.num_images).tolist()

    def _adopt_whole(self, keep: np.ndarray) -> None:
        """Compute anew what the senders write."""
        self._turn_to(None)
        for chunk in self._chunks:
            if chunk.base is not None:
                self._run(keep, chunk)
                self._work.copy_to(chunk.base)

    def _run(self, keep: np.ndarray, chunk: Chunk) -> Tensor:
        """Logits of a whole run."""
        forward = Forward(self._model, self.graph, Route.through(self.graph, keep))
        embedded = self._model.embed(chunk.images)
        fixed = forward.fixed(self._shape.split(embedded[None]), chunk.constants or self._constants_of(chunk))
        return forward.logits(fixed, None, self._work.outputs(forward.route.changed, len(chunk.images)))

    def _filled(self, chunk: Chunk, keep: np.ndarray) -> Chunk:
        """The chunk, or where memory does not reach, one like it that knows what the senders write under ``keep``."""
        if chunk.base is not None:
            return chunk
        filled = replace(chunk, constants=self._constants_of(chunk), base=self._room(chunk))
        self._run(keep, filled)
        self._work.copy_to(filled.base)
        return filled

    def _constants_of(self, chunk: Chunk) -> Outputs:
        if self._constants is not None:
            return self._constants
        return self._shape.split(sender_outputs(self._model, chunk.replaced, self.graph))

    def _room(self, chunk: Chunk) -> Outputs:
        """Room for what all senders write, with what the input does."""
        room = self._shape.outputs(len(chunk.images), chunk.images)
        room.body[0] = self._model.embed(chunk.images)
        return room

    def _make_room(self) -> None:
        """Give chunks memory for what their senders write and what a reader in focus needs, as far as it reaches."""
        copies = self._shape.senders * (1 if self._constants is not None else 2) + len(self.graph.reader_nodes)
        image = copies * self._shape.tokens * self._shape.width * self._model.pos_embed.element_size()
        left = held = cache_bytes(self._chunks[0].images.device) // image
        for chunk in self._chunks:
            left -= len(chunk.images)
            if left < 0:
                warnings.warn(f"memory reaches for {held} of {self.num_images} images: whatever the others need is "
                              "computed again each time, which is slow; use fewer images", stacklevel=8)
                return
            chunk.constants, chunk.base = self._constants_of(chunk), self._room(chunk)
