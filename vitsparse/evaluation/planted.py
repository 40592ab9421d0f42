"""Vision Transformers whose true circuit is known by construction: the test that a discovery method can fail.

Every sender writes into channels of its own, and every reader has weights on the channels of chosen senders only. So
an edge exists exactly where the reader looks at the sender's channels; cutting any other edge changes nothing. All
else is that of a real model: random weights, patterns of softmax attention, hidden units with GELU. To try a method:

    planted = random_planted(seed=0, depth=3, heads=3)
    batches = planted.batches()
    ablation = Ablation.mean(planted.model, batches)
    scores = my_method(planted.model, batches, graph=planted.graph, ablation=ablation)
    roc(scores, planted.circuit).auc                                # 1.0: every true edge above every other one

One thing stands between channels: a LayerNorm looks at all of them. Here its ``eps`` dwarfs any variance, its weight
is the root of ``eps``, and every value is written twice, with both signs: then the mean is zero, the variance does not
count, and each channel passes as it is. "Nothing" above therefore means the rounding of float64, about 1e-12.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..circuit import GRANULARITIES, Circuit, Graph, Reader, Sender
from ..circuit.liveness import prune
from ..errors import InputError
from ..model.edgewise import Edgewise, group_bounds
from ..model.vit import ViT
from .ablation import Ablation
from .faithfulness import circuit_metrics

WIDTH = 2
"""How many channels each sender writes."""
LINEAR_EPS = 1e12
MIN_EFFECT = 1e-3
"""The least KL in nats that cutting a true edge of :func:`random_planted` costs, under zero and under mean ablation."""
MAX_DRAWS = 200
_PAIR = torch.tensor([1.0, -1.0], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Planted:
    """A float64 ``model`` in eval mode, its true ``circuit``, and images [N, C, S, S] with labels [N] that show it."""

    model: ViT
    circuit: Circuit
    images: Tensor
    labels: Tensor

    @property
    def graph(self) -> Graph:
        """The graph of the circuit."""
        return self.circuit.graph

    def batches(self, size: int = 8) -> list[tuple[Tensor, Tensor]]:
        """The images and labels in batches of ``size``."""
        return list(zip(self.images.split(size), self.labels.split(size), strict=True))


def random_planted(seed: int, *, depth: int = 2, heads: int = 2, granularity: str = "head", mlp_groups: int = 1,
                   density: float = 0.4) -> Planted:
    """A ViT with a random circuit: pruned, and each of its edges costs at least :data:`MIN_EFFECT` when cut alone.

    Half of the heads attend (their queries and keys read something), the others take the mean over tokens; the circuit
    holds at least one that attends, and an MLP. Senders that nobody reads are there too: large activations and weights
    that do not matter. Readers look at a sender with probability ``density`` (0.2 suits 4 layers of 4 heads). The
    labels are what the model says; mean pooling, so that every token counts. Circuits that do not make it are drawn
    again; :class:`InputError` when none of :data:`MAX_DRAWS` does.
    """
    graph = Graph(depth, heads, granularity, mlp_groups)
    if not 0 < density <= 1 or granularity not in GRANULARITIES:
        raise InputError("no circuit of this kind can be planted", where="random_planted",
                         expected=f"0 < density <= 1, granularity one of {GRANULARITIES}",
                         found=f"density {density}, granularity {granularity!r}")
    fine = Graph(depth, heads, "qkv", mlp_groups)
    rng = np.random.default_rng(seed)
    for _ in range(MAX_DRAWS):
        wiring = _draw_wiring(fine, density, rng)
        truth = Circuit(fine, prune(fine, wiring))
        if not (any("<k>" in name for name in truth.kept) and any("->m" in name for name in truth.kept)):
            continue
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        images = _draw_images(generator)
        model = _random_model(fine, wiring, images, generator)
        circuit = _seen_at(graph, truth)
        with torch.no_grad():
            planted = Planted(model, circuit, images, model(images).argmax(-1))
        if _every_edge_matters(planted):
            return planted
    raise InputError("no circuit was found whose every edge matters", where="random_planted",
                     found=f"{MAX_DRAWS} draws for {graph!r}, density {density}",
                     remedy="choose a smaller graph or another density")


def and_gate() -> Planted:
    """``a AND b``: the images carry two bits (one per colour channel), two heads fetch one each, the MLP combines them.

    Its images are all four cases, so that every edge of the circuit matters: all methods find it.
    """
    cases = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    return _gate(cases, 1.0, -1.5, 0.0)


def or_gate() -> Planted:
    """``a OR b`` as in :func:`and_gate`, for images with both bits set: either head is enough.

    So under zero ablation no single cut at or before the MLP changes anything, and the MLP is saturated: exact scores
    and gradients of these four edges are 0 by nature, though ``circuit`` (what computes the gate) holds them. ACDC,
    which cuts one after another, keeps one of the two roads; :func:`~vitsparse.evaluation.faithfulness.completeness`
    shows that the other one is missing.
    """
    return _gate(torch.ones(4, 2, dtype=torch.float64), -1.0, 0.5, 1.0)


def _draw_wiring(fine: Graph, density: float, rng: np.random.Generator) -> np.ndarray:
    """[E] bool for a ``"qkv"`` graph: which reader looks at which sender.

    Keys that are the same for all tokens give a flat pattern, and a pattern is lost on values that are the same for all
    tokens: the keys and values of a head that attends only look at senders that differ between tokens.
    """
    def some(candidates: np.ndarray) -> np.ndarray:
        chosen = candidates & (rng.random(len(candidates)) < density)
        chosen[rng.choice(np.flatnonzero(candidates))] = True
        return chosen

    keep = np.zeros(fine.num_edges, dtype=bool)
    differs = np.zeros(len(fine.senders), dtype=bool)  # between tokens
    differs[0] = True
    for reader in fine.reader_nodes:
        before, anything = differs[: reader.fan_in], np.ones(reader.fan_in, dtype=bool)
        if reader.kind == "q":
            attends = rng.random() < 0.5
            keep[reader.edges] = some(anything) & attends
            differs[list(reader.drives)] = (keep[reader.edges] & before).any()
        elif reader.kind == "k":
            keep[reader.edges] = some(before) & attends
        else:
            keep[reader.edges] = some(before if reader.kind == "v" and attends else anything)
        if reader.kind == "mlp":
            differs[list(reader.drives)] = (keep[reader.edges] & before).any()
    return keep


def _draw_images(generator: torch.Generator) -> Tensor:
    """[12, 1, 6, 6]: one patch repeated, different for each image, plus noise."""
    patch, noise = (torch.randn(12, 1, size, size, generator=generator, dtype=torch.float64) for size in (2, 6))
    return patch.repeat(1, 1, 3, 3) + noise


def _random_model(fine: Graph, wiring: np.ndarray, images: Tensor, generator: torch.Generator) -> ViT:
    """A ViT with random weights wherever ``wiring`` lets a reader look."""
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    model = _blank(fine, img_size=6, patch_size=2, in_chans=1, num_classes=4)
    with torch.no_grad():
        _write(model.patch_embed.proj.weight.flatten(1), 0, 0.5 * normal(WIDTH, 4))
        _write(model.pos_embed[0].T, 0, 0.5 * normal(WIDTH, model.config.num_tokens))
        for reader in fine.reader_nodes:
            rows, biases = _rows(model, reader)
            senders = np.flatnonzero(wiring[reader.edges])
            for sender in senders:
                _read(rows, int(sender), normal(len(rows), WIDTH) / len(senders) ** 0.5)
            biases.copy_(0.3 * normal(len(biases)))
        for position, sender in enumerate(fine.sender_nodes[1:], start=1):
            columns = _columns(model, sender, fine.mlp_groups)
            _write(columns, position, normal(WIDTH, columns.shape[1]))
        _even_out(model, fine, images)
    return model


def _even_out(model: ViT, fine: Graph, images: Tensor) -> None:
    """Scale every sender so that it deviates by about 1 from its mean over ``images``, and the logits by about 2."""
    edgewise = Edgewise(model, fine)
    stack, keep = edgewise.start(images), torch.ones(fine.num_edges, dtype=images.dtype)
    for stage in range(edgewise.num_stages - 1):
        edgewise.run_stage(stack, stage, keep)
        senders = edgewise.writes(stage)
        for position in range(senders.start, senders.stop):
            written = stack.first(position + 1)[position][..., _channels(position)]
            _columns(model, fine.sender_nodes[position], fine.mlp_groups).div_(_deviation(written))
        edgewise.run_stage(stack, stage, keep)
    deviation = _deviation(edgewise.logits(stack, keep))
    model.head.weight.mul_(2 / deviation)


def _deviation(values: Tensor) -> Tensor:
    """Root mean square distance from the mean over images [B, ...]."""
    return (values - values.mean(0)).square().mean().sqrt()


def _seen_at(graph: Graph, circuit: Circuit) -> Circuit:
    """A circuit of the ``"qkv"`` graph at a coarser granularity: an edge stays if any of its parts does."""
    names = set()
    for name in circuit.kept:
        sender, reader = name.split("->")
        if graph.granularity == "block":
            sender = re.sub(r"(a\d+)\.h\d+", r"\1", sender)
        if graph.granularity != "qkv":
            reader = re.sub("<.>", "", reader)
        if graph.granularity in ("layer", "block"):
            reader = re.sub(r"(a\d+)\.h\d+", r"\1", reader)
        names.add(f"{sender}->{reader}")
    return Circuit(graph, [name in names for name in graph.edge_names], provenance={"method": "planted"})


def _every_edge_matters(planted: Planted) -> bool:
    """Whether each single cut in the circuit costs :data:`MIN_EFFECT`, under zero and under mean ablation."""
    batches = planted.batches(len(planted.images))
    cuts = [np.arange(planted.graph.num_edges) != edge for edge in np.flatnonzero(planted.circuit.keep)]
    ablations = (Ablation.zero(planted.model), Ablation.mean(planted.model, batches, planted.graph))
    return all(circuit_metrics(planted.model, batches, cuts, graph=planted.graph, ablation=ablation).min() >= MIN_EFFECT
               for ablation in ablations)


def _gate(cases: Tensor, sign: float, threshold: float, at_rest: float) -> Planted:
    """``at_rest + sign * 2 * ReLU(sign * (a + b) + threshold)`` of two bits [N, 2], as a ViT of one layer."""
    graph = Graph(1, 2)
    model = _blank(graph, img_size=4, patch_size=2, in_chans=2, num_classes=2)
    steep = 40.0  # GELU(steep * x) / steep is ReLU(x) to 1e-80 at the distances from 0 that occur
    truth = at_rest + sign * 2 * (sign * cases.sum(1) + threshold).clamp(min=0)
    with torch.no_grad():
        mean_of_channel = torch.eye(2, dtype=torch.float64).repeat_interleave(4, dim=1) / 4
        _write(model.patch_embed.proj.weight.flatten(1), 0, mean_of_channel)
        attention, mlp, width = model.blocks[0].attn, model.blocks[0].mlp, model.config.head_dim
        for head in range(2):  # the class token holds no bit: four tokens of five
            value = attention.qkv.weight[2 * model.embed_dim + head * width:][:1]
            _read(value, 0, 1.25 * torch.eye(2, dtype=torch.float64)[head: head + 1])
            _write(attention.proj.weight[:, head * width:][:, :1], 1 + head, _first(1.0))
            _read(mlp.fc1.weight[:1], 1 + head, steep * sign * _first(1.0).T)
        mlp.fc1.bias[0] = steep * threshold
        _write(mlp.fc2.weight[:, :1], 3, _first(2 * sign / steep))
        _write(mlp.fc2.bias[:, None], 3, _first(at_rest))
        _read(model.head.weight, 3, torch.tensor([[-6.0, 0.0], [6.0, 0.0]], dtype=torch.float64))
        model.head.bias.copy_(torch.tensor([3.0, -3.0]))
    names = {"input->a0.h0", "input->a0.h1", "a0.h0->m0", "a0.h1->m0", "m0->logits"}
    circuit = Circuit(graph, [name in names for name in graph.edge_names], provenance={"method": "planted"})
    return Planted(model, circuit, cases[:, :, None, None].expand(-1, -1, 4, 4).contiguous(), truth.long())


def _first(value: float) -> Tensor:
    """[WIDTH, 1]: ``value`` for the first of a sender's channels."""
    return torch.tensor([[value]] + [[0.0]] * (WIDTH - 1), dtype=torch.float64)


def _blank(graph: Graph, **arguments: int) -> ViT:
    """A float64 ViT with channels for every sender of ``graph``, without a weight, and with norms that do nothing."""
    channels = 2 * WIDTH * len(graph.senders)
    model = ViT(embed_dim=channels + -channels % graph.heads, depth=graph.depth, num_heads=graph.heads, mlp_ratio=1.0,
                global_pool="avg", norm_eps=LINEAR_EPS, dtype=torch.float64, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(LINEAR_EPS**0.5)
    return model


def _rows(model: ViT, reader: Reader) -> tuple[Tensor, Tensor]:
    """Views of the weights [n, D] with which a reader looks at the residual stream, and of their biases [n]."""
    if reader.kind == "logits":
        return model.head.weight, model.head.bias
    block = model.blocks[reader.layer]
    if reader.kind == "mlp":
        return block.mlp.fc1.weight, block.mlp.fc1.bias
    first = "qkv".index(reader.kind) * model.embed_dim + reader.index * model.config.head_dim
    rows = slice(first, first + model.config.head_dim)
    return block.attn.qkv.weight[rows], block.attn.qkv.bias[rows]


def _columns(model: ViT, sender: Sender, mlp_groups: int) -> Tensor:
    """A view of the weights [D, n] with which a head or an MLP group writes."""
    block = model.blocks[sender.layer]
    if sender.kind == "mlp":
        bounds = group_bounds(model.config.mlp_hidden, mlp_groups)
        return block.mlp.fc2.weight[:, bounds[sender.index]: bounds[sender.index + 1]]
    return block.attn.proj.weight[:, sender.index * model.config.head_dim:][:, : model.config.head_dim]


def _read(rows: Tensor, sender: int, weight: Tensor) -> None:
    """Let ``rows`` [n, D] look at a sender's channels with ``weight`` [n, WIDTH]: half at either sign of the pair."""
    rows[:, _channels(sender)] = torch.kron(weight, _PAIR / 2)


def _write(columns: Tensor, sender: int, weight: Tensor) -> None:
    """Let ``columns`` [D, n] write ``weight`` [WIDTH, n] into a sender's channels, with both signs."""
    columns[_channels(sender)] = torch.kron(weight, _PAIR[:, None])


def _channels(sender: int) -> slice:
    return slice(2 * WIDTH * sender, 2 * WIDTH * (sender + 1))
