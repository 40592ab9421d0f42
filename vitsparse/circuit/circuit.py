"""Circuit: which edges stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, nearest
from . import eap_ig_json, liveness
from .files import read_json, write_json
from .frozen import Frozen
from .graph import Graph

FORMAT, VERSION = "vitsparse.circuit", 1


def as_edge_vector(graph: Graph, values: Any, where: str) -> np.ndarray:
    """``values`` (list, numpy, torch) as a fresh 1-D array with one entry per edge, or :class:`InputError`."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    array = np.array(values)
    if array.shape != (graph.num_edges,):
        raise InputError("one value per edge is needed", where=where, found=f"shape {array.shape}",
                         expected=f"shape ({graph.num_edges},) for {graph!r}")
    if array.dtype.kind not in "biuf":
        raise InputError("edge values must be numbers", where=where, expected="bool, int or float", found=array.dtype)
    return array


@dataclass(frozen=True, eq=False)
class Circuit(Frozen):
    """Graph + the edges that stay (``keep``: read-only bool [E] in canonical order) + where they come from.

    ``ablation`` names what stands in for a cut edge (``{"kind", "sha256"}``), ``provenance`` how the circuit was found.
    Circuits of one graph combine with ``&``, ``|``, ``-`` and ``~``; two are equal when graph and edges are.
    """

    graph: Graph
    keep: np.ndarray
    ablation: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        keep = as_edge_vector(self.graph, self.keep, "Circuit.keep")
        if keep.dtype != bool:
            if not np.isin(keep, (0, 1)).all():
                raise InputError("a circuit keeps an edge or cuts it", where="Circuit.keep", expected="only 0 and 1",
                                 found=f"values in [{keep.min()}, {keep.max()}]",
                                 remedy="turn scores into a circuit with EdgeScores.top_k or .threshold")
            keep = keep.astype(bool)
        keep.setflags(write=False)
        object.__setattr__(self, "keep", keep)
        self._freeze_json("provenance")
        self._freeze_json("ablation")

    @classmethod
    def full(cls, graph: Graph) -> Circuit:
        """The circuit that keeps every edge: the dense model."""
        return cls(graph, np.ones(graph.num_edges, dtype=bool))

    @property
    def num_kept(self) -> int:
        """How many edges stay."""
        return int(self.keep.sum())

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """Names of the edges that stay, in canonical order."""
        return tuple(self.graph.edge_names[i] for i in np.flatnonzero(self.keep))

    @cached_property
    def dead(self) -> tuple[str, ...]:
        """Senders without a path to ``logits``: never computed."""
        alive = liveness.reaches_logits(self.graph, self.keep)
        return tuple(name for name, live in zip(self.graph.senders, alive, strict=True) if not live)

    @cached_property
    def constant(self) -> tuple[str, ...]:
        """Senders that reach ``logits`` but are not reached from ``input``: computed once and folded."""
        alive = liveness.reaches_logits(self.graph, self.keep)
        varies = liveness.depends_on_input(self.graph, self.keep)
        return tuple(name for name, yes in zip(self.graph.senders, alive & ~varies, strict=True) if yes)

    @cached_property
    def uniform(self) -> tuple[str, ...]:
        """Attentions that weigh all tokens alike because their scores are cut; only a graph of operators has any."""
        even = liveness.weighs_alike(self.graph, self.keep)
        return tuple(name for name, yes in zip(self.graph.senders, even, strict=True) if yes)

    def prune(self) -> Circuit:
        """The fixpoint prune: drop every edge that is not on a path from ``input`` to ``logits``.

        This is a selection step: it may change the function (a constant node stops contributing).
        """
        return self._with(liveness.prune(self.graph, self.keep), {**self.provenance, "pruned": True})

    def _with(self, keep: np.ndarray, provenance: Mapping[str, Any]) -> Circuit:
        return Circuit(self.graph, keep, ablation=self.ablation, provenance=provenance)

    def _combine(self, other: Circuit, keep: np.ndarray, symbol: str) -> Circuit:
        return self._with(keep, {"combined": symbol, "left": dict(self.provenance), "right": dict(other.provenance)})

    def _same_graph(self, other: Circuit) -> None:
        if self.graph != other.graph:
            raise InputError("circuits of different graphs cannot be combined", where="Circuit", expected=self.graph,
                             found=other.graph)

    def __and__(self, other: Circuit) -> Circuit:
        self._same_graph(other)
        return self._combine(other, self.keep & other.keep, "&")

    def __or__(self, other: Circuit) -> Circuit:
        self._same_graph(other)
        return self._combine(other, self.keep | other.keep, "|")

    def __sub__(self, other: Circuit) -> Circuit:
        self._same_graph(other)
        return self._combine(other, self.keep & ~other.keep, "-")

    def __invert__(self) -> Circuit:
        return self._with(~self.keep, {"combined": "~", "of": dict(self.provenance)})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and self.graph == other.graph and np.array_equal(self.keep, other.keep)

    def __hash__(self) -> int:
        return hash((self.graph, self.keep.tobytes()))

    def save(self, path: str | Path) -> None:
        """Write ``circuit.json`` (format in DESIGN.md, "Files"). Atomic."""
        write_json(path, {
            "format": FORMAT, "version": VERSION, "graph": self.graph.to_dict(),
            "ablation": dict(self.ablation) if self.ablation is not None else None,
            "kept": list(self.kept), "provenance": dict(self.provenance),
        })

    def save_eap_ig(self, path: str | Path, *, embed_dim: int) -> None:
        """Write the JSON of the EAP-IG tool, with score 1 for every kept edge and 0 for the others. Atomic.

        A circuit together with the scores it was chosen by: :meth:`EdgeScores.save_eap_ig`, which explains the rest.
        """
        eap_ig_json.write(path, self.graph, self.keep, self.keep, embed_dim)

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read ``circuit.json``, or what is ``in_graph`` in a JSON file of the EAP-IG tool (told apart by content).

        Every field is checked, and complaints name the file and the field.
        """
        data = read_json(path)
        if eap_ig_json.is_eap_ig(data):
            file = eap_ig_json.parse(data, path)
            return cls(file.graph, file.in_graph, provenance=file.provenance)
        fields = {"format", "version", "graph", "ablation", "kept", "provenance"}
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError("not a circuit file", where=path, expected=f'"format": "{FORMAT}"',
                             found=data.get("format") if isinstance(data, dict) else type(data).__name__)
        if type(data.get("version")) is not int or data["version"] != VERSION:
            raise InputError("a circuit file of another version", where=f"{path}: version", expected=VERSION,
                             found=data.get("version"),
                             remedy="find the circuit anew, or convert it with the version that wrote it")
        if set(data) != fields:
            raise InputError("missing or unknown fields", where=path, expected=sorted(fields), found=sorted(data))
        graph = Graph.from_dict(data["graph"], where=f"{path}: graph")
        keep = _keep_from_names(graph, data["kept"], path)
        _check_ablation(data["ablation"], path)
        if not isinstance(data["provenance"], dict):
            raise InputError("provenance must be an object", where=f"{path}: provenance", found=data["provenance"])
        return cls(graph, keep, ablation=data["ablation"], provenance=data["provenance"])

    def __repr__(self) -> str:
        share = self.num_kept / self.graph.num_edges
        return (f"Circuit({self.graph!r}, {self.num_kept} of {self.graph.num_edges} edges ({share:.1%}), "
                f"{len(self.dead)} dead and {len(self.constant)} constant nodes"
                + (f", {len(self.uniform)} uniform attentions)" if self.uniform else ")"))


def _keep_from_names(graph: Graph, names: Any, path: str | Path) -> np.ndarray:
    if not isinstance(names, list) or len(names) > graph.num_edges:
        raise InputError("kept must be a list of edge names", where=f"{path}: kept",
                         expected=f"a list of at most {graph.num_edges} names", found=type(names).__name__
                         if not isinstance(names, list) else f"{len(names)} names")
    index = {name: i for i, name in enumerate(graph.edge_names)}
    keep = np.zeros(graph.num_edges, dtype=bool)
    for position, name in enumerate(names):
        if not isinstance(name, str) or name not in index:
            raise InputError("an edge that this graph does not have", where=f"{path}: kept[{position}]",
                             expected=f"an edge of {graph!r}", found=repr(name), remedy=nearest(str(name), index))
        if keep[index[name]]:
            raise InputError("an edge is listed twice", where=f"{path}: kept[{position}]", found=repr(name))
        keep[index[name]] = True
    return keep


def _check_ablation(ablation: Any, path: str | Path) -> None:
    if ablation is None:
        return
    ok = isinstance(ablation, dict) and set(ablation) == {"kind", "sha256"} and isinstance(ablation["kind"], str)
    digest = ablation["sha256"] if ok else None
    if not ok or not (digest is None or (isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest))):
        raise InputError("the ablation entry is damaged", where=f"{path}: ablation",
                         expected='{"kind": ..., "sha256": 64 hex digits or null}', found=ablation)
