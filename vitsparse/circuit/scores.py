"""EdgeScores: how much each edge matters, and the choices of edges that follow from scores."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from . import eap_ig_json
from .circuit import Circuit, as_edge_vector
from .files import read_tensors, write_tensors
from .frozen import Frozen
from .graph import Graph, Reader

FORMAT, VERSION = "vitsparse.edge_scores", 1


@dataclass(frozen=True, eq=False)
class EdgeScores(Frozen):
    """A score for every edge of ``graph``, float64 [E] in canonical order; positive means that cutting it hurts.

    ``provenance`` says how the scores were made (method, metric, ...). NaN and infinity are refused.
    """

    graph: Graph
    values: np.ndarray
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        values = as_edge_vector(self.graph, self.values, "EdgeScores.values").astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise InputError("scores must be finite numbers", where=f"edge {self.graph.edge_name(int(bad[0]))}",
                             expected="finite", found=f"{values[bad[0]]} ({bad.size} such edges)",
                             remedy="look for NaN in the model's logits or the ablation")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)
        self._freeze_json("provenance")

    def top_k(self, n: int, *, by: str = "magnitude") -> Circuit:
        """Keep exactly the ``n`` highest edges; ties go to the earlier edge in canonical order."""
        self._check_count(n, "top_k(n)")
        keep = np.zeros(self.graph.num_edges, dtype=bool)
        keep[np.argsort(-self._ranking(by), kind="stable")[:n]] = True
        return self._circuit(keep, {"selection": "top_k", "n": int(n), "by": by})

    def threshold(self, t: float, *, by: str = "magnitude") -> Circuit:
        """Keep the edges whose score (its magnitude, unless ``by="signed"``) is at least ``t``."""
        if math.isnan(t):
            raise InputError("the threshold must be a number", where="threshold(t)", found=t)
        level = float(t) if math.isfinite(t) else str(t)  # JSON knows no infinity
        return self._circuit(self._ranking(by) >= t, {"selection": "threshold", "t": level, "by": by})

    def greedy(self, n: int, *, by: str = "magnitude") -> Circuit:
        """Grow a circuit back from ``logits``: ``n`` times, keep the highest edge into a reader that is in already.

        ``logits`` is in from the start, another reader as soon as an edge from a sender that it drives is kept. So
        every edge has a way to ``logits``, but not every node has one in (:meth:`Circuit.prune`). Exactly ``n`` edges
        are kept; ties go to the earlier edge in canonical order. The EAP-IG tool's selection (Hanna, Pezzelle and
        Belinkov 2024, arXiv:2403.17806).
        """
        self._check_count(n, "greedy(n)")
        return self._circuit(_grow(self.graph, self._ranking(by), n), {"selection": "greedy", "n": int(n), "by": by})

    def _check_count(self, n: int, where: str) -> None:
        if not hasattr(n, "__index__") or not 0 <= n <= self.graph.num_edges:
            raise InputError("cannot keep that many edges", where=where, found=n,
                             expected=f"an integer, 0 .. {self.graph.num_edges}")

    def _ranking(self, by: str) -> np.ndarray:
        if by not in ("magnitude", "signed"):
            raise InputError("unknown ranking", where="by", expected="'magnitude' or 'signed'", found=repr(by))
        return np.abs(self.values) if by == "magnitude" else self.values

    def _circuit(self, keep: np.ndarray, selection: dict[str, Any]) -> Circuit:
        ablation = self.provenance.get("ablation")
        return Circuit(self.graph, keep, ablation=ablation, provenance={**self.provenance, **selection})

    def save(self, path: str | Path) -> None:
        """Write safetensors: ``scores`` float64 [E]; graph and provenance as JSON in the metadata. Atomic."""
        metadata = {"format": FORMAT, "version": str(VERSION), "graph": json.dumps(self.graph.to_dict()),
                    "provenance": json.dumps(dict(self.provenance))}
        write_tensors(path, {"scores": self.values}, metadata)

    def save_eap_ig(self, path: str | Path, *, embed_dim: int, circuit: Circuit | None = None) -> None:
        """Write the JSON of the EAP-IG tool: the scores, and ``circuit`` (none: no edge) as its ``in_graph``. Atomic.

        ``embed_dim`` is the model's. Raises :class:`InputError` for a graph that is not of granularity ``"qkv"``, or a
        circuit of another graph.
        """
        if circuit is not None and circuit.graph != self.graph:
            raise InputError("the circuit is of another graph than the scores", where="circuit", expected=self.graph,
                             found=circuit.graph)
        keep = np.zeros(self.graph.num_edges, dtype=bool) if circuit is None else circuit.keep
        eap_ig_json.write(path, self.graph, self.values, keep, embed_dim)

    @classmethod
    def load(cls, path: str | Path) -> EdgeScores:
        """Read what :meth:`save` wrote, or the scores in a JSON file of the EAP-IG tool (told apart by their content).

        Raises :class:`InputError` naming the file and the field.
        """
        if eap_ig_json.is_json(path):
            file = eap_ig_json.read(path)
            return cls(file.graph, file.scores, file.provenance)
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
            raise InputError("not a file of edge scores of this version", where=path,
                             expected=f"{FORMAT} version {VERSION}",
                             found=f"{metadata.get('format')} version {metadata.get('version')}")
        if set(tensors) != {"scores"} or tensors["scores"].dtype.kind != "f":
            raise InputError("a file of edge scores holds one floating-point tensor", where=path, expected="scores",
                             found={name: str(tensor.dtype) for name, tensor in tensors.items()})
        try:
            graph_fields, provenance = json.loads(metadata["graph"]), dict(json.loads(metadata["provenance"]))
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise InputError("the metadata is damaged", where=path, expected="JSON objects in graph and provenance",
                             found=repr(error)) from error
        graph = Graph.from_dict(graph_fields, where=path)
        try:
            return cls(graph, tensors["scores"], provenance)
        except InputError as error:
            raise error.within(path) from None

    def __repr__(self) -> str:
        if not self.values.size:
            return f"EdgeScores({self.graph!r})"
        low, high = self.values.min(), self.values.max()
        method = self.provenance.get("method", "unknown method")
        return f"EdgeScores({self.graph!r}, {len(self.values)} edges in [{low:.3g}, {high:.3g}], {method})"


def _grow(graph: Graph, ranking: np.ndarray, n: int) -> np.ndarray:
    """[E] bool: ``n`` edges, one after the other the best (the first of equals) whose reader is in."""
    readers_of: list[list[Reader]] = [[] for _ in graph.senders]  # those that drive a sender
    for reader in graph.reader_nodes:
        for sender in reader.drives:
            readers_of[sender].append(reader)
    keep = np.zeros(graph.num_edges, dtype=bool)
    inside: set[str] = set()
    heap: list[tuple[float, int, int]] = []  # (-rank, edge, sender) of the edges that may be next
    arriving = [reader for reader in graph.reader_nodes if reader.kind == "logits"]
    for _ in range(n):
        for reader in arriving:
            if reader.name not in inside:
                inside.add(reader.name)
                for sender, rank in enumerate(ranking[reader.edges].tolist()):
                    heapq.heappush(heap, (-rank, reader.first_edge + sender, sender))
        _, edge, sender = heapq.heappop(heap)
        keep[edge] = True
        arriving = readers_of[sender]
    return keep
