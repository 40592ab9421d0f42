"""From an operator circuit to the naive plan: that of the circuit of blocks it maps onto, and the cuts inside a block.

Between sub-blocks a cut decides who still reaches whom, and whose b_O comes along: that is a circuit of blocks. Inside
a sub-block it leaves zeros where a value was (``zero``), or takes away the norm in front of a product. The passes then
fold what has become constant, as for any circuit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..circuit import operator
from ..circuit.circuit import Circuit
from ..circuit.liveness import of_stream
from ..circuit.operator import Cuts
from ..model.config import ViTConfig
from .plan import Plan
from .steps import Embed, Linear, Step, SumNorm
from .translate import head_norm, translate


def translate_operators(config: ViTConfig, circuit: Circuit, parameters: Mapping[str, Tensor]) -> Plan:
    """The naive plan of a circuit of operators, up to what the head reads; ``parameters`` are the dense model's."""
    blocks = Circuit(*of_stream(circuit.graph, circuit.keep))
    nothing = torch.zeros(len(blocks.graph.senders), config.num_tokens, config.embed_dim)
    plan = translate(config, blocks, nothing)
    cuts = Cuts(config.depth, circuit.keep)
    biases = {reader: entry.biases for reader, entry in
              zip(blocks.graph.readers, operator.inputs(config.depth, circuit.keep), strict=True)}
    silent, bare = _silent_values(cuts, config.depth), _bare_norms(cuts, config.depth)

    def cut(step: Step) -> Step:
        step = step.map_reads(lambda view: replace(view, name="zero") if view.name in silent else view)
        if isinstance(step, SumNorm):
            return replace(step, biases=biases[step.readers[0]])
        if isinstance(step, Embed):
            return replace(step, class_token=cuts.intact("class_token"), positions=cuts.intact("positions"))
        return replace(step, norm=None) if isinstance(step, Linear) and step.norm in bare else step

    constants = {"zero": torch.zeros(config.num_tokens, max(config.embed_dim, config.mlp_hidden))}
    steps = tuple(map(cut, plan.steps))
    if not cuts.reads_images:
        constants["s.input"] = _embedding(config, cuts, parameters)
        steps = steps[1:]
    return replace(plan, steps=steps, constants=constants)


def cut_head(config: ViTConfig, circuit: Circuit, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``parameters`` as the cuts behind the final norm leave them: the head is not part of a circuit's plan.

    Each of these cuts leaves only a bias for logits, and the plan in front of the head gives zeros then.
    """
    cuts, zeroed = Cuts(config.depth, circuit.keep), set()
    in_front = ("getitem", "head", "output") if config.global_pool == "token" else ("head", "output")
    if not cuts.intact(*in_front):
        zeroed.add(f"{head_norm(config)}.bias")
    if not cuts.intact("output"):
        zeroed.add("head.bias")
    return {key: torch.zeros_like(value) if key in zeroed else value for key, value in parameters.items()}


def _silent_values(cuts: Cuts, depth: int) -> set[str]:
    """Values that are zeros: queries and keys where nothing is left of the scores, hidden units."""
    names = set()
    for layer in range(depth):
        if not cuts.intact("scores", layer=layer):
            names |= {f"q.a{layer}", f"k.a{layer}"}
        if not cuts.intact("hidden", layer=layer):
            names.add(f"h.m{layer}")
    return names


def _bare_norms(cuts: Cuts, depth: int) -> set[str]:
    """LayerNorms whose output is cut off: the product behind gets zeros, not the norm's bias."""
    kinds = {"norm1": "qkv", "norm2": "fc1"}
    return {f"blocks.{layer}.{norm}" for layer in range(depth) for norm, kind in kinds.items()
            if not cuts.intact(kind, layer=layer)}


def _embedding(config: ViTConfig, cuts: Cuts, parameters: Mapping[str, Tensor]) -> Tensor:
    """What is left of an embedding that no longer sees the images, [T, D]."""
    bias, class_token, positions = (parameters[key].double().cpu() for key in
                                    ("patch_embed.proj.bias", "cls_token", "pos_embed"))
    tokens = torch.cat([class_token[0] * cuts.intact("class_token"),
                        bias.expand(config.num_patches, -1) * cuts.intact("patches")])
    return tokens * cuts.intact("tokens") + positions[0] * cuts.intact("positions")
