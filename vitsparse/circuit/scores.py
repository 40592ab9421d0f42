"""EdgeScores: how much each edge matters, and the choices of edges that follow from scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .circuit import Circuit, as_edge_vector
from .files import read_tensors, write_tensors
from .frozen import Frozen
from .graph import Graph

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
        self._freeze("provenance")

    def top_k(self, n: int, *, by: str = "magnitude") -> Circuit:
        """Keep exactly the ``n`` highest edges; ties go to the earlier edge in canonical order."""
        if not hasattr(n, "__index__") or not 0 <= n <= self.graph.num_edges:
            raise InputError("cannot keep that many edges", where="top_k(n)", found=n,
                             expected=f"an integer, 0 .. {self.graph.num_edges}")
        keep = np.zeros(self.graph.num_edges, dtype=bool)
        keep[np.argsort(-self._ranking(by), kind="stable")[:n]] = True
        return self._circuit(keep, {"selection": "top_k", "n": int(n), "by": by})

    def threshold(self, t: float, *, by: str = "magnitude") -> Circuit:
        """Keep the edges whose score (its magnitude, unless ``by="signed"``) is at least ``t``."""
        if math.isnan(t):
            raise InputError("the threshold must be a number", where="threshold(t)", found=t)
        return self._circuit(self._ranking(by) >= t, {"selection": "threshold", "t": float(t), "by": by})

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

    @classmethod
    def load(cls, path: str | Path) -> EdgeScores:
        """Read what :meth:`save` wrote; raises :class:`InputError` naming the file and the field."""
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
