"""The operator graph: what ``torch.fx`` sees in a ViT of timm's kind. Its nodes are operators, not heads.

It has 14 + 42 * depth edges however many heads there are: 10 of the embedding, 42 of each block, 4 of the tail, in the
order of the tables below. Operators of block ``l`` are called ``b{l}.NAME``; one that occurs again there gets fx's
suffix (``add``, ``add_1``). ``b{l}.in`` is the residual stream that enters the block: ``add`` of the embedding, or
``b{l-1}.add_1``. With LayerScale its product belongs to the edges into ``drop_path`` and ``drop_path_1``.

A cut edge feeds zeros. The edges of kind ``shape`` carry sizes and no values: they are counted, but cutting one changes
nothing. The other kinds say what a cut does to the sub-block around it; edges of one kind act in series, so that
cutting any of them is cutting all:

    scores       every query spreads its attention evenly over the tokens: the pattern is uniform
    values       the attention mixes nothing: only its output bias b_O is left
    attn_out     the attention writes nothing, not even b_O; for ``mlp_out`` likewise the MLP
    attn_norm    the attention reads zeros in front of its LayerNorm; for ``mlp_norm`` likewise the MLP
    qkv, fc1     ... zeros behind its LayerNorm
    hidden       the MLP's hidden units are zeros: its output bias is left
    attn_skip    readers behind the attention of the block see nothing that was written before; ``mlp_skip`` likewise

So the graph maps onto that of granularity ``"block"``: :func:`inputs` says which sub-blocks still reach which.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

OPERATOR = "operator"


def _table(text: str) -> tuple[tuple[str, str], ...]:
    """(edge, kind) for each line."""
    return tuple((edge, kind) for edge, kind in (line.split() for line in text.strip().splitlines()))


EMBEDDING = _table("""
    x->size                   shape
    x->proj                   image
    proj->flatten             patches
    flatten->transpose        patches
    cls_token->expand         class_token
    size->expand              shape
    expand->cat               class_token
    transpose->cat            patches
    cat->add                  tokens
    pos_embed->add            positions
""")

BLOCK = _table("""
    in->norm1                 attn_norm
    norm1->shape              shape
    shape->B                  shape
    shape->N                  shape
    shape->C                  shape
    norm1->qkv                qkv
    C->floordiv               shape
    qkv->reshape              values
    B->reshape                shape
    N->reshape                shape
    floordiv->reshape         shape
    reshape->permute          values
    permute->q                scores
    permute->k                scores
    permute->v                values
    k->transpose              scores
    q->matmul                 scores
    transpose->matmul         scores
    matmul->scale             scores
    scale->softmax            scores
    softmax->attn_drop        values
    attn_drop->matmul_1       values
    v->matmul_1               values
    matmul_1->transpose_1     values
    transpose_1->reshape_1    values
    B->reshape_1              shape
    N->reshape_1              shape
    C->reshape_1              shape
    reshape_1->proj           values
    proj->proj_drop           attn_out
    proj_drop->drop_path      attn_out
    in->add                   attn_skip
    drop_path->add            attn_out
    add->norm2                mlp_norm
    norm2->fc1                fc1
    fc1->act                  hidden
    act->drop1                hidden
    drop1->fc2                hidden
    fc2->drop2                mlp_out
    drop2->drop_path_1        mlp_out
    add->add_1                mlp_skip
    drop_path_1->add_1        mlp_out
""")

TAIL = _table("""
    add_1->norm               norm
    norm->getitem             getitem
    getitem->head             head
    head->output              output
""")


def num_edges(depth: int) -> int:
    """14 + 42 * depth."""
    return len(EMBEDDING) + len(BLOCK) * depth + len(TAIL)


def block_edge(layer: int, edge: str) -> str:
    """The name of a block's edge: ``b3.in->b3.norm1`` for layer 3 and ``in->norm1``."""
    sender, reader = edge.split("->")
    return f"b{layer}.{sender}->b{layer}.{reader}"


def edge_names(depth: int) -> tuple[str, ...]:
    """All edge names in canonical order; the tail reads the last block's ``add_1``."""
    blocks = [block_edge(layer, edge) for layer in range(depth) for edge, _ in BLOCK]
    return (*(edge for edge, _ in EMBEDDING), *blocks, f"b{depth - 1}.{TAIL[0][0]}", *(edge for edge, _ in TAIL[1:]))


def shape_only(depth: int) -> np.ndarray:
    """bool [E]: the edges that carry sizes and no values, 2 + 11 * depth of them."""
    return np.array([kind == "shape" for _, kind in (*EMBEDDING, *BLOCK * depth, *TAIL)])


class Cuts:
    """Which kinds of edges are intact, where ``keep`` is bool [E]: a kind is cut with any of its edges."""

    def __init__(self, depth: int, keep: np.ndarray):
        first, last = len(EMBEDDING), len(keep) - len(TAIL)
        self._ends = _cut_kinds((*EMBEDDING, *TAIL), [*keep[:first], *keep[last:]])
        self._blocks = [_cut_kinds(BLOCK, row) for row in keep[first:last].reshape(depth, -1)]

    def intact(self, *kinds: str, layer: int | None = None) -> bool:
        """Whether all ``kinds`` of edges are intact in a block, or without ``layer`` in embedding and tail."""
        return (self._ends if layer is None else self._blocks[layer]).isdisjoint(kinds)

    @property
    def reads_images(self) -> bool:
        """Whether the embedding still depends on the images."""
        return self.intact("image", "patches", "tokens")

    @property
    def embeds(self) -> bool:
        """Whether anything is left of the embedding, be it the same for all images."""
        return self.intact("positions") or (self.intact("tokens") and (self.intact("class_token") or
                                                                     self.intact("patches")))

    @property
    def skips(self) -> int:
        """How many of the edges are cut that lead the residual stream around a sub-block."""
        return sum(not self.intact(kind, layer=layer) for layer in range(len(self._blocks))
                   for kind in ("attn_skip", "mlp_skip"))


def _cut_kinds(table: Iterable[tuple[str, str]], keep: Iterable[bool]) -> frozenset[str]:
    return frozenset(kind for (_, kind), kept in zip(table, keep, strict=True) if not kept)


@dataclass(frozen=True)
class Input:
    """What still reaches one reader: senders by their position in the graph of blocks, and the layers of the b_O."""

    senders: tuple[int, ...] = ()
    biases: tuple[int, ...] = ()


def inputs(depth: int, keep: np.ndarray) -> tuple[Input, ...]:
    """The input of each reader of the graph of blocks: attention and MLP of each layer, then ``logits``.

    An attention without ``values`` is no sender: it writes b_O alone, which is no sender's at any granularity.
    """
    cuts, found = Cuts(depth, keep), []
    stream = Input((0,) if cuts.embeds else ())
    for layer in range(depth):
        found.append(stream if cuts.intact("attn_norm", "qkv", layer=layer) else Input())
        stream = stream if cuts.intact("attn_skip", layer=layer) else Input()
        if cuts.intact("attn_out", layer=layer):
            written = (1 + 2 * layer,) if cuts.intact("values", layer=layer) else ()
            stream = Input(stream.senders + written, (*stream.biases, layer))
        found.append(stream if cuts.intact("mlp_norm", "fc1", "hidden", layer=layer) else Input())
        stream = stream if cuts.intact("mlp_skip", layer=layer) else Input()
        if cuts.intact("mlp_out", layer=layer):
            stream = Input((*stream.senders, 2 + 2 * layer), stream.biases)
    return (*found, stream if cuts.intact(*(kind for _, kind in TAIL)) else Input())


def block_edges(depth: int, keep: np.ndarray) -> np.ndarray:
    """bool [E of the graph of blocks]: whether a sub-block's output still reaches another's input."""
    rows = [np.isin(np.arange(position + 1), entry.senders) for position, entry in enumerate(inputs(depth, keep))]
    return np.concatenate(rows)


def prune(depth: int, keep: np.ndarray) -> np.ndarray:
    """bool [E]: the fixpoint prune. What lies on no path from an image or a parameter to ``output`` goes.

    ``x``, ``cls_token`` and ``pos_embed`` need no way in, ``output`` no way out; edges that carry only shapes stay as
    they are.
    """
    names, shapes = edge_names(depth), shape_only(depth)
    ends = [tuple(_node(end) for end in name.split("->")) for name in names]
    reached, read = {"x", "cls_token", "pos_embed"}, {"output"}
    carries = [edge for edge in range(len(keep)) if keep[edge] and not shapes[edge]]
    for edge in carries:
        if ends[edge][0] in reached:
            reached.add(ends[edge][1])
    for edge in reversed(carries):
        if ends[edge][1] in read:
            read.add(ends[edge][0])
    live = [sender in reached and reader in read for sender, reader in ends]
    return keep & (shapes | np.array(live))


def _node(end: str) -> str:
    """The operator behind an end of an edge: ``b{l}.in`` is what ended the part before."""
    block, _, operator = end.rpartition(".")
    if operator != "in":
        return end
    return "add" if block == "b0" else f"b{int(block[1:]) - 1}.add_1"
