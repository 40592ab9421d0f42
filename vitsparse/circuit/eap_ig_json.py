"""The JSON of the EAP-IG tool (Hanna, Pezzelle and Belinkov 2024, arXiv:2403.17806): scores and a circuit in one file.

    {"cfg":   {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": false, "d_model": 768},
     "nodes": {"input": {"in_graph": true}, "a0.h0": {"in_graph": false}, ..., "logits": {"in_graph": true}},
     "edges": {"input->a0.h0<q>": {"score": -0.0003, "in_graph": false}, ...}}

Its graph is ours of granularity ``"qkv"`` without MLP groups, under the same names but in another order, so edges are
matched by name. Nodes follow from edges. Scores of nodes and single neurons, which the format has too, are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .files import existing_file, read_json, write_json
from .graph import Graph

_CFG = {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"}


@dataclass(frozen=True)
class EapIgFile:
    """What such a file says: ``scores`` float64 [E] and ``in_graph`` bool [E] in canonical order, and its ``cfg``."""

    graph: Graph
    scores: np.ndarray
    in_graph: np.ndarray
    cfg: dict[str, Any]

    @property
    def provenance(self) -> dict[str, Any]:
        """Where scores and circuits from this file come from."""
        return {"format": "EAP-IG", "cfg": self.cfg}


def is_json(path: str | Path) -> bool:
    """Whether a file holds a JSON object: safetensors begin with 8 bytes of a length, some of which are zero."""
    with open(existing_file(path), "rb") as file:
        head = file.read(8)
    return head.lstrip().startswith(b"{") and b"\0" not in head


def is_eap_ig(data: Any) -> bool:
    """Whether parsed JSON is meant to be such a file, sound or not."""
    return isinstance(data, dict) and {"cfg", "edges"} <= data.keys()


def read(path: str | Path) -> EapIgFile:
    """Read such a file; every field is checked, and :class:`InputError` names the file and the field."""
    data = read_json(path)
    if not is_eap_ig(data):
        raise InputError("not a JSON file of the EAP-IG tool", where=path, expected="cfg, nodes and edges",
                         found=list(data)[:5] if isinstance(data, dict) else type(data).__name__,
                         remedy="circuit.json is read by Circuit.load; our own scores are safetensors")
    return parse(data, path)


def parse(data: dict[str, Any], path: str | Path) -> EapIgFile:
    """The same, of JSON that was read from ``path``."""
    if set(data) != {"cfg", "nodes", "edges"} or not all(isinstance(part, dict) for part in data.values()):
        raise InputError("missing, unknown or damaged fields", where=path, expected="objects cfg, nodes and edges",
                         found={name: type(part).__name__ for name, part in data.items()})
    graph = _graph(data["cfg"], path)
    edges = _in_canonical_order(graph, data["edges"], path)
    _check_nodes(graph, data["nodes"], path)
    return EapIgFile(graph, np.array([edge["score"] for edge in edges], dtype=np.float64),
                     np.array([edge["in_graph"] for edge in edges], dtype=bool), data["cfg"])


def write(path: str | Path, graph: Graph, scores: Sequence[float], in_graph: Sequence[bool], embed_dim: int) -> None:
    """Write such a file, atomically. A node is ``in_graph`` when it has an edge in (``input`` needs none) and one out.

    ``embed_dim`` is the width of the residual stream, which that tool asks for. Raises :class:`InputError` for a graph
    that its format does not have.
    """
    if graph.granularity != "qkv" or graph.mlp_groups > 1:
        raise InputError("the EAP-IG tool has no such graph", where="graph", found=graph,
                         expected="granularity='qkv' without MLP groups",
                         remedy="score the model on vs.Graph.of(model, granularity='qkv')")
    if type(embed_dim) is not int or embed_dim < 1:
        raise InputError("the width must be a positive integer", where="embed_dim", expected="model.embed_dim",
                         found=repr(embed_dim))
    keep = np.asarray(in_graph)
    reads, writes = np.zeros((2, len(graph.senders)), dtype=bool)
    reads[0] = True
    for reader in graph.reader_nodes:
        reads[list(reader.drives)] |= keep[reader.edges].any()
        writes[: reader.fan_in] |= keep[reader.edges]
    nodes = dict(zip(graph.senders, map(bool, reads & writes), strict=True)) | {"logits": True}
    edges = zip(graph.edge_names, map(float, scores), map(bool, keep), strict=True)
    write_json(path, {
        "cfg": {"n_layers": graph.depth, "n_heads": graph.heads, "parallel_attn_mlp": False, "d_model": embed_dim},
        "nodes": {name: {"in_graph": inside} for name, inside in nodes.items()},
        "edges": {name: {"score": score, "in_graph": inside} for name, score, inside in edges},
    }, indent=None)


def _graph(cfg: dict[str, Any], path: str | Path) -> Graph:
    if set(cfg) != _CFG or type(cfg["d_model"]) is not int or not isinstance(cfg["parallel_attn_mlp"], bool):
        raise InputError("cfg must give the shape of the model", where=f"{path}: cfg", expected=sorted(_CFG), found=cfg)
    if cfg["parallel_attn_mlp"]:
        raise InputError("in a Vision Transformer the MLP reads the heads of its own layer",
                         where=f"{path}: cfg: parallel_attn_mlp", expected=False, found=True)
    fields = {"depth": cfg["n_layers"], "heads": cfg["n_heads"], "granularity": "qkv", "mlp_groups": 1}
    return Graph.from_dict(fields, where=f"{path}: cfg")


def _in_canonical_order(graph: Graph, edges: dict[str, Any], path: str | Path) -> list[dict[str, Any]]:
    """The entries of all edges, none missing and none unknown."""
    found = []
    # One name at a time: cfg may promise far more edges than the file has, and the first missing one ends this.
    for reader in graph.reader_nodes:
        for sender in graph.senders[: reader.fan_in]:
            name = f"{sender}->{reader.name}"
            if name not in edges:
                raise InputError("an edge is missing", where=f"{path}: edges", found=f"{len(edges)} edges",
                                 expected=f"{name}: {graph.num_edges} edges of a model of {graph.depth} layers "
                                          f"with {graph.heads} heads")
            _check_edge(edges[name], f"{path}: edges: {name}")
            found.append(edges[name])
    if len(edges) > len(found):
        known = set(graph.edge_names)
        unknown = next(name for name in edges if name not in known)
        raise InputError("an edge that this graph does not have", where=f"{path}: edges",
                         expected=f"an edge of {graph!r}", found=repr(unknown))
    return found


def _check_edge(edge: Any, where: str) -> None:
    fields = edge if isinstance(edge, dict) else {}
    score, in_graph = fields.get("score"), fields.get("in_graph")
    # Compared with an integer of any size before it becomes a float; false for NaN.
    finite = type(score) in (int, float) and abs(score) <= sys.float_info.max
    if len(fields) != 2 or not finite or not isinstance(in_graph, bool):
        raise InputError("an edge has a score and is in the graph or not", where=where, found=str(edge)[:80],
                         expected='{"score": a finite number, "in_graph": true or false}')


def _check_nodes(graph: Graph, nodes: dict[str, Any], path: str | Path) -> None:
    expected = {*graph.senders, "logits"}
    if set(nodes) != expected:
        odd = sorted(set(nodes) ^ expected)
        raise InputError("missing or unknown nodes", where=f"{path}: nodes", expected=f"the nodes of {graph!r}",
                         found=f"{odd[0]!r} is {'unknown' if odd[0] in nodes else 'missing'}")
    for name, node in nodes.items():
        if not isinstance(node, dict) or set(node) != {"in_graph"} or not isinstance(node["in_graph"], bool):
            raise InputError("a node is in the graph or not", where=f"{path}: nodes: {name}",
                             expected='{"in_graph": true or false}; scores of nodes and neurons are not understood',
                             found=str(node)[:80])
