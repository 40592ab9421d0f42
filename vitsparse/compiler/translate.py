"""From a circuit to the naive plan: the edge-wise definition written down step by step, before any pass.

Every reader sums its own senders and the ablation values of the ones it lost, every head makes its own products. Names:
``s.X`` is what sender X writes, ``n.R`` the normed input of reader R, ``ablation.X`` the constant that stands in for X.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import compress

import numpy as np
import torch
from torch import Tensor

from ..circuit.circuit import Circuit
from ..circuit.graph import Reader
from ..model.config import ViTConfig
from ..model.edgewise import group_bounds
from .plan import Plan
from .steps import Attention, Bias, Embed, Linear, MeanRows, Range, Step, SumNorm, View, Weight


def translate(config: ViTConfig, circuit: Circuit, ablation_values: Tensor) -> Plan:
    """The naive plan of ``circuit`` for a ViT of shape ``config``, up to what its head reads.

    ``ablation_values`` is [S, T, D] (``Ablation.stacked``), in the precision that the plan shall have. The output is
    LayerNorm(r_logits) without its affine part, or r_logits itself for ``global_pool="avg"``, for all tokens;
    :func:`append_head` goes on to the logits.
    """
    return _Translation(config, circuit, ablation_values).plan()


def append_head(plan: Plan) -> Plan:
    """``plan`` with the classifier behind it: the class token, or the norm of the mean patch."""
    config = plan.config
    width, classes = (0, config.embed_dim), ((0, config.num_classes),)
    steps: list[Step] = []
    normed = View(plan.output.name, (0, 1), width)
    if config.global_pool == "avg":
        mean, normed = View("mean", (0, 1), width), View("n.mean", (0, 1), width)
        steps = [MeanRows(View(plan.output.name, (1, config.num_tokens), width), mean),
                 SumNorm(("logits",), (mean,), normed=normed)]
    steps.append(Linear(normed, View("logits", (0, 1), classes[0]), Weight("head.weight", classes, (width,)),
                        Bias("head.bias", classes), norm=head_norm(config)))
    return replace(plan, steps=(*plan.steps, *steps), output=steps[-1].writes[0])


def head_norm(config: ViTConfig) -> str:
    """The LayerNorm in front of the classifier."""
    return "norm" if config.global_pool == "token" else "fc_norm"


class _Translation:
    def __init__(self, config: ViTConfig, circuit: Circuit, ablation_values: Tensor):
        self.config, self.graph, self.keep = config, circuit.graph, circuit.keep
        self.rows: Range = (0, config.num_tokens)
        self.width: Range = (0, config.embed_dim)
        self.outputs = [self._stream(f"s.{name}") for name in self.graph.senders]
        self.stand_ins = [self._stream(f"ablation.{name}") for name in self.graph.senders]
        self.matters = np.array([bool(value.any()) for value in ablation_values])  # where a stand-in is not all zeros
        self.constants = {view.name: value for view, value, yes in
                          zip(self.stand_ins, ablation_values, self.matters, strict=True) if yes}

    def plan(self) -> Plan:
        steps: list[Step] = [Embed(self._stream("s.input"), self.config.in_chans * self.config.patch_size**2)]
        readers = {}
        for reader in self.graph.reader_nodes:
            readers.setdefault((reader.layer, reader.kind == "mlp"), []).append(reader)
        for (layer, is_mlp), group in readers.items():
            if group[0].kind == "logits":
                steps.append(self._input(group[0], norm=self.config.global_pool == "token"))
            elif is_mlp:
                steps += self._mlp(layer, group[0])
            else:
                steps += self._attention(layer, group)
        return Plan(self.config, tuple(steps), self.constants, steps[-1].writes[-1])

    def _stream(self, name: str) -> View:
        return View(name, self.rows, self.width)

    def _input(self, reader: Reader, *, norm: bool = True) -> SumNorm:
        """The sum (and norm) in front of one reader."""
        kept = self.keep[reader.edges]
        lost = ~kept & self.matters[: reader.fan_in]
        terms = (*compress(self.outputs, kept.tolist()), *compress(self.stand_ins, lost.tolist()))
        if not terms:  # nothing is left but b_O: a sum needs a first term
            self.constants["zero"] = torch.zeros(self.rows[1], self.width[1])
            terms = (self._stream("zero"),)
        biases = tuple(range(min(self.config.depth, reader.layer + (reader.kind == "mlp"))))
        out = self._stream(f"{'n' if norm else 'r'}.{reader.name}")
        return SumNorm((reader.name,), terms, biases, total=None if norm else out, normed=out if norm else None)

    def _attention(self, layer: int, readers: list[Reader]) -> Iterator[Step]:
        inputs: dict[tuple[int, str], View] = {}
        for reader in readers:
            step = self._input(reader)
            yield step
            heads = range(self.graph.heads) if reader.kind == "attn" else (reader.index,)
            parts = reader.kind if reader.kind in ("q", "k", "v") else "qkv"
            inputs.update({(head, part): step.out for head in heads for part in parts})
        if self.graph.granularity == "block":
            yield from self._heads(layer, f"a{layer}", range(self.graph.heads), inputs)
        else:
            for head in range(self.graph.heads):
                yield from self._heads(layer, f"a{layer}.h{head}", range(head, head + 1), inputs)

    def _heads(self, layer: int, name: str, heads: range, inputs: dict[tuple[int, str], View]) -> Iterator[Step]:
        """The heads of one sender: three products, attention, product with their rows of W_O."""
        dim, width = self.config.head_dim, self.config.embed_dim
        block = f"blocks.{layer}"
        views = {}
        for position, part in enumerate("qkv"):
            rows = ((position * width + heads.start * dim, position * width + heads.stop * dim),)
            views[part] = View(f"{part}.{name}", self.rows, (0, len(heads) * dim))
            bias = Bias(f"{block}.attn.qkv.bias", rows) if self.config.qkv_bias else None
            weight = Weight(f"{block}.attn.qkv.weight", rows, (self.width,))
            yield Linear(inputs[heads.start, part], views[part], weight, bias, norm=f"{block}.norm1")
        mixed = View(f"z.{name}", self.rows, (0, len(heads) * dim))
        yield Attention(views["q"], views["k"], views["v"], mixed, len(heads))
        columns = ((heads.start * dim, heads.stop * dim),)
        yield Linear(mixed, self._stream(f"s.{name}"), Weight(f"{block}.attn.proj.weight", (self.width,), columns),
                     scale=self._layer_scale(layer, 1))

    def _mlp(self, layer: int, reader: Reader) -> Iterator[Step]:
        step = self._input(reader)
        yield step
        block, groups = f"blocks.{layer}", self.graph.mlp_groups
        bounds = group_bounds(self.config.mlp_hidden, groups)
        for sender in reader.drives:
            node = self.graph.sender_nodes[sender]
            units = ((bounds[node.index], bounds[node.index + 1]),)
            hidden = View(f"h.{node.name}", self.rows, (0, units[0][1] - units[0][0]))
            yield Linear(step.out, hidden, Weight(f"{block}.mlp.fc1.weight", units, (self.width,)),
                         Bias(f"{block}.mlp.fc1.bias", units), norm=f"{block}.norm2", activation="gelu")
            weight = Weight(f"{block}.mlp.fc2.weight", (self.width,), units)
            bias = Bias(f"{block}.mlp.fc2.bias", (self.width,), 1 / groups)
            yield Linear(hidden, self._stream(f"s.{node.name}"), weight, bias, scale=self._layer_scale(layer, 2))

    def _layer_scale(self, layer: int, position: int) -> str | None:
        return f"blocks.{layer}.ls{position}.gamma" if self.config.init_values else None
