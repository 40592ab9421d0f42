"""The graph of a Vision Transformer: who writes into the residual stream, and who reads it.

Nodes write (senders) and read (readers). In topological order the senders are ``input``, then for each layer ``l`` its
heads ``a{l}.h{h}`` and its MLP ``m{l}`` (or the groups ``m{l}.g{k}`` of it); the readers are the attention inputs and
the MLP input of each layer, and last ``logits``. Because a reader sees exactly the senders before it, its senders are
always a *prefix* of the sender list: an edge is (reader, position in that prefix), and the canonical order follows.

Names are those of the EAP-IG tool: ``sender->reader``, with ``<q>``, ``<k>``, ``<v>`` for a split head.

Granularity ``"operator"`` is another kind of graph (:mod:`.operator`): its edges join the operators inside the
sub-blocks, and its ``senders`` are the sub-blocks, which cuts leave live, constant or dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import InputError, nearest
from . import operator
from .operator import OPERATOR

GRANULARITIES = ("qkv", "head", "layer", "block")
"""Those whose nodes read sums of the residual stream; :data:`OPERATOR` is the other one."""
MAX_EDGES = 2**23
"""Of a graph in a file: a ViT of 48 layers and 48 heads has as many, and so many names still fit into memory."""


@dataclass(frozen=True)
class Sender:
    """One writer. ``kind`` is ``input``, ``head``, ``attn`` (a whole attention, at ``"block"``) or ``mlp``.

    ``index`` is the head or the MLP group within the layer.
    """

    name: str
    kind: str
    layer: int
    index: int = 0


@dataclass(frozen=True)
class Reader:
    """One reader and the edges into it.

    ``kind`` is ``q``, ``k``, ``v`` (one input of a head), ``head`` (all three), ``attn`` (all heads of a layer),
    ``mlp`` or ``logits``. Its senders are the first ``fan_in`` of the graph; edge ``first_edge + i`` comes from
    sender ``i``. ``drives`` are the positions of the senders whose output this reader feeds (empty for ``logits``).
    """

    name: str
    kind: str
    layer: int
    index: int
    fan_in: int
    first_edge: int
    drives: tuple[int, ...]

    @property
    def edges(self) -> slice:
        """The slice of the canonical edge vector that holds this reader's edges."""
        return slice(self.first_edge, self.first_edge + self.fan_in)


@dataclass(frozen=True)
class Graph:
    """What could be connected, from three integers and a word; see the module's head for the order of things.

    Raises :class:`InputError` for sizes below one or an unknown granularity.
    """

    depth: int
    heads: int
    granularity: str = "head"
    mlp_groups: int = 1

    def __post_init__(self):
        for field in ("depth", "heads", "mlp_groups"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"a graph needs a positive integer for {field}", where=f"Graph.{field}",
                                 expected="an integer >= 1", found=repr(value))
        known = (*GRANULARITIES, OPERATOR)
        if self.granularity not in known:
            raise InputError("unknown granularity", where="Graph.granularity", expected=f"one of {known}",
                             found=repr(self.granularity), remedy=nearest(str(self.granularity), known))
        if self.granularity == OPERATOR and self.mlp_groups > 1:
            raise InputError("the operator graph has no MLP groups", where="Graph.mlp_groups", expected=1,
                             found=self.mlp_groups)

    @classmethod
    def of(cls, model: Any, *, granularity: str = "head", mlp_groups: int = 1) -> Graph:
        """The graph of a ViT (anything with ``depth`` and ``num_heads``)."""
        if not (hasattr(model, "depth") and hasattr(model, "num_heads")):
            raise InputError("this model has no graph", where="Graph.of(model)", expected="a ViT of vitsparse",
                             found=type(model).__name__,
                             remedy="convert it first: vs.from_timm(model) or vs.from_torchvision(model)")
        hidden = getattr(getattr(model, "config", None), "mlp_hidden", mlp_groups)
        if isinstance(mlp_groups, int) and mlp_groups > hidden:
            raise InputError("more MLP groups than hidden units", where="Graph.of(mlp_groups=...)",
                             expected=f"at most {hidden}", found=mlp_groups)
        return cls(model.depth, model.num_heads, granularity, mlp_groups)

    @cached_property
    def sender_nodes(self) -> tuple[Sender, ...]:
        """All senders in topological order."""
        nodes = [Sender("input", "input", -1)]
        for layer in range(self.depth):
            if self.granularity in ("block", OPERATOR):
                nodes.append(Sender(f"a{layer}", "attn", layer))
            else:
                nodes += [Sender(f"a{layer}.h{h}", "head", layer, h) for h in range(self.heads)]
            if self.mlp_groups == 1:
                nodes.append(Sender(f"m{layer}", "mlp", layer))
            else:
                nodes += [Sender(f"m{layer}.g{k}", "mlp", layer, k) for k in range(self.mlp_groups)]
        return tuple(nodes)

    @cached_property
    def reader_nodes(self) -> tuple[Reader, ...]:
        """All readers in topological order, with their edges; an operator graph has none and refuses."""
        if self.granularity == OPERATOR:
            raise InputError("this cannot be done with an operator graph: its edges lie inside the sub-blocks, and "
                             "nothing reads a sum of senders", where="graph", expected=f"one of {GRANULARITIES}",
                             found=self)
        nodes: list[Reader] = []
        edge = 0

        def add(name: str, kind: str, layer: int, index: int, fan_in: int, drives: tuple[int, ...]) -> None:
            nonlocal edge
            nodes.append(Reader(name, kind, layer, index, fan_in, edge, drives))
            edge += fan_in

        for layer in range(self.depth):
            before = self.writers_before(layer)
            after = before + self.writers_per_attention
            for name, kind, index in self._attention_readers(layer):
                drives = (before + index,) if kind != "attn" else tuple(range(before, after))
                add(name, kind, layer, index, before, drives)
            add(f"m{layer}", "mlp", layer, 0, after, tuple(range(after, after + self.mlp_groups)))
        add("logits", "logits", self.depth, 0, self.writers_before(self.depth), ())
        return tuple(nodes)

    def _attention_readers(self, layer: int) -> list[tuple[str, str, int]]:
        if self.granularity in ("layer", "block"):
            return [(f"a{layer}", "attn", 0)]
        if self.granularity == "head":
            return [(f"a{layer}.h{h}", "head", h) for h in range(self.heads)]
        return [(f"a{layer}.h{h}<{part}>", part, h) for h in range(self.heads) for part in "qkv"]

    @property
    def writers_per_attention(self) -> int:
        """How many senders the attention of one layer is."""
        return 1 if self.granularity in ("block", OPERATOR) else self.heads

    def writers_before(self, layer: int) -> int:
        """W(l): how many senders come before layer ``layer``."""
        return 1 + layer * (self.writers_per_attention + self.mlp_groups)

    @cached_property
    def senders(self) -> tuple[str, ...]:
        """Sender names in topological order."""
        return tuple(node.name for node in self.sender_nodes)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Reader names in topological order."""
        return tuple(node.name for node in self.reader_nodes)

    @cached_property
    def num_edges(self) -> int:
        """How many edges the graph has."""
        if self.granularity == OPERATOR:
            return operator.num_edges(self.depth)
        last = self.reader_nodes[-1]
        return last.first_edge + last.fan_in

    @cached_property
    def edge_names(self) -> tuple[str, ...]:
        """All edge names in canonical order."""
        if self.granularity == OPERATOR:
            return operator.edge_names(self.depth)
        return tuple(f"{sender}->{reader.name}" for reader in self.reader_nodes
                     for sender in self.senders[: reader.fan_in])

    @cached_property
    def shape_only(self) -> np.ndarray:
        """Read-only bool [E]: edges that carry sizes and no values, so that cutting one changes nothing.

        Only an operator graph has any.
        """
        found = operator.shape_only(self.depth) if self.granularity == OPERATOR else np.zeros(self.num_edges, bool)
        found.setflags(write=False)
        return found

    @cached_property
    def _edge_indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.edge_names)}

    def edge_index(self, name: str) -> int:
        """Position of the edge ``name`` in canonical order; :class:`InputError` if there is none."""
        try:
            return self._edge_indices[name]
        except KeyError:
            raise InputError("unknown edge", where=repr(self), expected="sender->reader of this graph",
                             found=repr(name), remedy=nearest(name, self._edge_indices)) from None

    def edge_name(self, index: int) -> str:
        """Name of edge ``index`` in canonical order; :class:`InputError` outside ``0 .. num_edges-1``."""
        if not 0 <= index < self.num_edges:
            raise InputError("edge index out of range", where=repr(self), expected=f"0 .. {self.num_edges - 1}",
                             found=index)
        return self.edge_names[index]

    def to_dict(self) -> dict[str, int | str]:
        """The four fields, as they stand in files."""
        return {"depth": self.depth, "heads": self.heads, "granularity": self.granularity,
                "mlp_groups": self.mlp_groups}

    @classmethod
    def from_dict(cls, fields: Any, *, where: object = "graph") -> Graph:
        """The inverse of :meth:`to_dict`; ``where`` names the file in complaints."""
        expected = ("depth", "heads", "granularity", "mlp_groups")
        if not isinstance(fields, dict) or set(fields) != set(expected):
            raise InputError("a graph is described by exactly four fields", where=where, expected=expected,
                             found=fields)
        try:
            graph = cls(**fields)
        except InputError as error:
            raise error.within(where) from None
        if graph.depth * max(graph.heads, graph.mlp_groups) > 2**16 or graph.num_edges > MAX_EDGES:
            raise InputError("the graph is larger than any Vision Transformer", where=where, found=fields)
        return graph

    def __repr__(self) -> str:
        groups = f", mlp_groups={self.mlp_groups}" if self.mlp_groups > 1 else ""
        return f"Graph(depth={self.depth}, heads={self.heads}, granularity={self.granularity!r}{groups})"
