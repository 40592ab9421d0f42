"""The baseline that looks at weights alone: how much can a sender write that a reader looks at?

The score of an edge i -> j is the size of the linear map from what makes the output of i to what j makes of it,

    score(i -> j) = || W_j  diag(gamma_j)  C  diag(lambda_i)  W_i ||_F

with W_i the output weights of the sender (the columns of a head in ``proj``, those of an MLP group in ``fc2``, the
patch embedding), lambda_i its LayerScale, C = 1 - 11'/D the centring and gamma_j the gain of the LayerNorm in front of
the reader, and W_j the reader's input weights (the rows of a head's q, k, v in ``qkv``, ``fc1``, the classifier).

It is the numerator of the composition score of Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021
("virtual weights"), used as magnitude pruning uses the size of a weight: not divided by the sizes of the two factors,
because small weights are meant to score low. Biases, position embedding and class token do not enter.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..circuit import EdgeScores, Graph, Reader, Sender
from ..circuit.operator import OPERATOR
from ..errors import InputError
from ..evaluation.ablation import Ablation, fingerprint
from ..evaluation.metrics import Metric
from ..model.edgewise import check_fits, group_bounds
from ..model.vit import ViT
from ..version import __version__


@torch.no_grad()
def magnitude(model: ViT, batches: Iterable[tuple[Tensor, Tensor]] | None = None, *, graph: Graph,
              ablation: Ablation, metric: str | Metric = "ce", journal: str | os.PathLike | None = None,
              progress: bool = True) -> EdgeScores:
    """The Frobenius norm, >= 0, of the linear map along every edge; see the head of this module for the formula.

    ``batches``, ``metric``, ``journal`` and ``progress`` are those of every method and unused: no image is looked at.
    Takes 8 S D^2 bytes for S senders and width D. Raises :class:`InputError` for a graph of another shape or of
    granularity ``"operator"``, whose edges lead through operators without weights.
    """
    check_fits(model, graph)
    if graph.granularity == OPERATOR:
        raise InputError("operators have no weights to measure", where="graph", found=graph,
                         expected="a graph of heads and MLPs", remedy="use exact, acdc or random on this graph")
    # |A B|^2 = <A'A, BB'>: with one [D, D] matrix per reader and per sender, all edges are one product.
    written = torch.stack([_gram(_writes(model, graph, node)) for node in graph.sender_nodes])
    squares = []
    for fan_in, readers in itertools.groupby(graph.reader_nodes, lambda reader: reader.fan_in):
        read = torch.stack([_gram(_reads(model, reader).T) for reader in readers])
        squares.append((read.flatten(1) @ written[:fan_in].flatten(1).T).flatten())
    values = torch.cat(squares).clamp(min=0).sqrt()  # what is zero may have come out as -1e-20
    return EdgeScores(graph, values, without_images("magnitude", model, ablation))


def without_images(method: str, model: ViT, ablation: Ablation, **settings: Any) -> dict[str, Any]:
    """The provenance of scores that depend on no image and no metric."""
    return {"method": method, **settings, "model": fingerprint(model), "ablation": ablation.describe(),
            "vitsparse": __version__, "torch": str(torch.__version__)}


def _gram(matrix: Tensor) -> Tensor:
    """M M' [D, D] of M [D, n], in float64."""
    return matrix.double() @ matrix.double().T


def _writes(model: ViT, graph: Graph, sender: Sender) -> Tensor:
    """C diag(lambda) W [D, n]: the output weights of a sender, as LayerNorms see them."""
    if sender.kind == "input":
        weight = model.patch_embed.proj.weight.flatten(1)
    else:
        block = model.blocks[sender.layer]
        layer, scale, parts = ((block.mlp.fc2, block.ls2, graph.mlp_groups) if sender.kind == "mlp" else
                               (block.attn.proj, block.ls1, graph.writers_per_attention))
        bounds = group_bounds(layer.in_features, parts)
        weight = scale(layer.weight[:, bounds[sender.index]: bounds[sender.index + 1]].T).T
    return weight - weight.mean(0)


def _reads(model: ViT, reader: Reader) -> Tensor:
    """W diag(gamma) [n, D]: the input weights of a reader, behind its LayerNorm."""
    if reader.kind == "logits":
        norm = model.norm if model.global_pool == "token" else model.fc_norm
        return norm.weight.diag() if isinstance(model.head, nn.Identity) else model.head.weight * norm.weight
    block = model.blocks[reader.layer]
    if reader.kind == "mlp":
        return block.mlp.fc1.weight * block.norm2.weight
    qkv = block.attn.qkv.weight * block.norm1.weight
    if reader.kind == "attn":
        return qkv
    parts = rearrange(qkv, "(three h d) e -> h three d e", three=3, h=model.num_heads)[reader.index]
    return parts.flatten(0, 1) if reader.kind == "head" else parts["qkv".index(reader.kind)]
