"""The edge-wise forward: a ViT with a switch on every edge. This is the definition; everything else must equal it.

Each reader ``j`` gets its own input,

    r_j = sum over its senders i of ( keep_ij * s_i + (1 - keep_ij) * a_i )  +  sum of the b_O before j,

then the LayerNorm in front of it, then the reader itself (notation of DESIGN.md, "What a circuit means"). Nothing is
shared between readers and nothing is skipped, so it is slow and plain on purpose. It is differentiable in ``keep``.

The forward is a chain of ``2 * depth + 1`` stages (attention and MLP of each layer, then the logits), each of which
reads the stack of sender outputs and puts its own there; a search that changes edges of one stage resumes from there.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..circuit.graph import Graph, Reader
from ..circuit.operator import OPERATOR
from ..errors import InputError
from .operatorwise import check_zero, operator_forward
from .vit import ViT


class AblationValues(Protocol):
    """What the edge-wise forward needs of an ablation: constants per sender, or a way to corrupt the images."""

    kind: str
    corrupt: Any

    def stacked(self, graph: Graph) -> Tensor:
        """[S, T, D]: the value of each sender of ``graph``; only called when ``corrupt`` is None."""
        ...


def edgewise_forward(model: ViT, images: Tensor, keep: Any, *, graph: Graph, ablation: AblationValues,
                     labels: Tensor | None = None) -> Tensor:
    """Logits [B, classes] of ``model`` with the edges of ``graph`` kept as ``keep`` says.

    ``images`` is [B, C, S, S]; ``keep`` is [E] in canonical order, bool or float (a weight per edge, differentiable);
    ``ablation`` gives the value a_i that stands in for a cut edge. ``labels`` [B] are only read by a counterfactual
    ablation, whose corruption may depend on them. An operator graph is run as :mod:`.operatorwise` says, under zero
    ablation. Raises :class:`InputError` when model, graph, keep and ablation do not fit.
    """
    check_fits(model, graph)
    keep = edge_weights(keep, graph, like=images)
    if graph.granularity == OPERATOR:
        check_zero(ablation)
        return operator_forward(model, images, keep, graph)
    constants = ablation_constants(model, images, graph=graph, ablation=ablation, labels=labels)
    return Edgewise(model, graph, constants).run(images, keep)


def sender_outputs(model: ViT, images: Tensor, graph: Graph) -> Tensor:
    """[S, B, T, D]: what every sender of ``graph`` writes in the dense run."""
    edgewise = Edgewise(model, graph)
    stack = edgewise.start(images)
    keep = torch.ones(graph.num_edges, dtype=images.dtype, device=images.device)
    for stage in range(edgewise.num_stages - 1):
        edgewise.run_stage(stack, stage, keep)
    return stack.first(len(graph.sender_nodes))


def ablation_constants(model: ViT, images: Tensor, *, graph: Graph, ablation: AblationValues,
                       labels: Tensor | None = None) -> Tensor:
    """[S, 1, T, D] (the same for every image) or, for a counterfactual ablation, [S, B, T, D]."""
    if ablation.corrupt is not None:
        return sender_outputs(model, corrupted(ablation, images, labels), graph)
    constants = ablation.stacked(graph).to(images)
    tokens_and_width = (model.config.num_tokens, model.config.embed_dim)
    if constants.shape[1:] != tokens_and_width:
        raise InputError("the ablation is of a model of another shape", where="ablation",
                         expected=f"values {list(tokens_and_width)}", found=f"values {list(constants.shape[1:])}")
    return constants[:, None]


def corrupted(ablation: AblationValues, images: Tensor, labels: Tensor | None) -> Tensor:
    """The images of a counterfactual ablation: one for each of ``images``, or :class:`InputError`."""
    found = ablation.corrupt(images, labels)
    if not isinstance(found, Tensor) or found.shape != images.shape:
        raise InputError("a corruption must give an image for each image", where="ablation.corrupt(images, labels)",
                         expected=f"a tensor {list(images.shape)}",
                         found=list(found.shape) if isinstance(found, Tensor) else type(found).__name__)
    return found


def edge_weights(keep: Any, graph: Graph, *, like: Tensor) -> Tensor:
    """``keep`` as a float tensor [E] with the dtype and device of ``like``."""
    if not isinstance(keep, Tensor):
        try:
            keep = torch.tensor(keep)  # a copy: a circuit's keep is read-only
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError("keep must be one number per edge", where="keep", found=type(keep).__name__,
                             expected=f"bool or float [{graph.num_edges}] in canonical order",
                             remedy="of a circuit it is circuit.keep") from error
    if keep.shape != (graph.num_edges,):
        raise InputError("one value per edge is needed", where="keep", found=f"shape {tuple(keep.shape)}",
                         expected=f"shape ({graph.num_edges},) for {graph!r}")
    return keep.to(like)


def check_model(model: Any) -> None:
    """Refuse what is no dense ViT of this package."""
    if not isinstance(model, ViT):
        raise InputError("only a dense ViT of vitsparse has a graph to cut edges in", where="model", expected="ViT",
                         found=type(model).__name__,
                         remedy="convert it first: vs.from_timm(model) or vs.from_torchvision(model)")


def check_fits(model: Any, graph: Graph) -> None:
    """Refuse what is no dense ViT, and a graph that was made for a model of another shape."""
    check_model(model)
    if (graph.depth, graph.heads) != (model.depth, model.num_heads):
        raise InputError("the graph is for a model of another shape", where="graph",
                         expected=f"depth={model.depth}, heads={model.num_heads} (the model's)", found=graph)


def group_bounds(hidden: int, groups: int) -> list[int]:
    """Where the contiguous MLP groups begin: ``groups + 1`` positions among ``hidden`` units."""
    return [k * hidden // groups for k in range(groups + 1)]


class Stack:
    """Sender outputs [S, B, T, D] in graph order, written stage by stage.

    Written in place where no gradient is wanted, else by concatenation.
    """

    def __init__(self, first: Tensor, capacity: int):
        self._grows = torch.is_grad_enabled()
        self._data = first[None] if self._grows else first.new_empty(capacity, *first.shape)
        if not self._grows:
            self._data[0] = first

    def put(self, position: int, new: Tensor) -> None:
        """Write ``new`` [n, B, T, D] at ``position``; what an earlier run put there is forgotten."""
        if self._grows:
            self._data = torch.cat([self._data[:position], new])
        else:
            self._data[position: position + len(new)] = new

    def first(self, count: int) -> Tensor:
        """The first ``count`` outputs, [count, B, T, D]."""
        return self._data[:count]


class Edgewise:
    """The stages of the edge-wise forward of one model, for one graph and one set of ablation constants.

    ``constants`` is [S, 1 or B, T, D]; without it no edge may be cut.
    """

    def __init__(self, model: ViT, graph: Graph, constants: Tensor | None = None):
        check_fits(model, graph)
        self.model, self.graph, self.constants = model, graph, constants
        self.num_stages = 2 * graph.depth + 1
        self._readers: list[list[Reader]] = [[] for _ in range(self.num_stages)]
        for reader in graph.reader_nodes:
            self._readers[self.stage_of(reader)].append(reader)

    def stage_of(self, reader: Reader) -> int:
        """The stage in which ``reader`` reads."""
        return 2 * reader.layer + (reader.kind == "mlp")

    def writes(self, stage: int) -> slice:
        """Which senders a stage puts on the stack; empty for the logits."""
        first = self._readers[stage][0].fan_in
        return slice(first, first + (self.graph.mlp_groups if stage % 2 else self.graph.writers_per_attention))

    def start(self, images: Tensor) -> Stack:
        """A stack that holds the output of ``input``."""
        return Stack(self.model.embed(images), len(self.graph.sender_nodes))

    def run(self, images: Tensor, keep: Tensor) -> Tensor:
        """Logits [B, classes]; ``keep`` is float [E]."""
        stack = self.start(images)
        return self.resume(stack, 0, keep)

    def resume(self, stack: Stack, stage: int, keep: Tensor) -> Tensor:
        """Run from ``stage`` to the logits, given a stack that holds every sender before it."""
        for current in range(stage, self.num_stages - 1):
            self.run_stage(stack, current, keep)
        return self.logits(stack, keep)

    def run_stage(self, stack: Stack, stage: int, keep: Tensor) -> None:
        """Run one attention (even) or MLP (odd stage) and put what it writes on the stack."""
        inputs = self._inputs(stack, stage, keep)
        outputs = self._mlp(stage // 2, inputs[0]) if stage % 2 else self._attention(stage // 2, inputs)
        stack.put(self._readers[stage][0].fan_in, outputs)

    def logits(self, stack: Stack, keep: Tensor) -> Tensor:
        """The last stage: what ``logits`` reads, through the model's own head."""
        residual = self._inputs(stack, self.num_stages - 1, keep)[0]
        return self.model.forward_head(self.model.norm(residual))

    def _inputs(self, stack: Stack, stage: int, keep: Tensor) -> Tensor:
        """r_j of every reader of a stage, [R, B, T, D]."""
        readers = self._readers[stage]
        weights = torch.stack([keep[reader.edges] for reader in readers])
        inputs = torch.tensordot(weights, stack.first(readers[0].fan_in), dims=1)
        if self.constants is None:
            return inputs + self._biases_before(stage)
        ablated = torch.tensordot(1 - weights, self.constants[: readers[0].fan_in], dims=1)
        return inputs + (ablated + self._biases_before(stage))

    def _biases_before(self, stage: int) -> Tensor | float:
        """Sum of b_O (times LayerScale) of the attentions before a stage, [D]: these are not edges."""
        blocks = self.model.blocks[: (stage + 1) // 2]
        return sum((block.ls1(block.attn.proj.bias) for block in blocks), 0.0)

    def _attention(self, layer: int, inputs: Tensor) -> Tensor:
        """Outputs of the heads [H, B, T, D] (or their sum [1, B, T, D] at ``"block"``) from the readers' inputs."""
        block, heads = self.model.blocks[layer], self.graph.heads
        # (h1, p1) count the readers, (h2, p2) what each of them feeds: h1 * h2 heads, p1 * p2 = 3 of q, k, v.
        axes = {"h1": heads if len(inputs) > 1 else 1, "p1": 3 if self.graph.granularity == "qkv" else 1}
        axes |= {"h2": heads // axes["h1"], "p2": 3 // axes["p1"]}
        weight = rearrange(block.attn.qkv.weight, "(p1 p2 h1 h2 e) d -> (h1 p1) (h2 p2 e) d", **axes)
        qkv = torch.einsum("rbtd,rod->rbto", block.norm1(inputs), weight)
        if block.attn.qkv.bias is not None:
            qkv = qkv + rearrange(block.attn.qkv.bias, "(p1 p2 h1 h2 e) -> (h1 p1) 1 1 (h2 p2 e)", **axes)
        q, k, v = rearrange(qkv, "(h1 p1) b t (h2 p2 e) -> (p1 p2) (h1 h2) b t e", **axes)
        pattern = torch.softmax(q @ k.transpose(-2, -1) * self.model.config.head_dim**-0.5, dim=-1)
        out_weight = rearrange(block.attn.proj.weight, "d (h e) -> h e d", h=heads)
        outputs = block.ls1(torch.einsum("hbte,hed->hbtd", pattern @ v, out_weight))
        return outputs.sum(0, keepdim=True) if self.graph.granularity == "block" else outputs

    def _mlp(self, layer: int, residual: Tensor) -> Tensor:
        """Outputs of the MLP groups, [G, B, T, D]."""
        block, groups = self.model.blocks[layer], self.graph.mlp_groups
        hidden = F.gelu(block.mlp.fc1(block.norm2(residual)))
        bounds = group_bounds(hidden.shape[-1], groups)
        weight, bias = block.mlp.fc2.weight, block.mlp.fc2.bias / groups
        return torch.stack([block.ls2(F.linear(hidden[..., a:b], weight[:, a:b], bias))
                            for a, b in itertools.pairwise(bounds)])
