"""Back from a plan to a plain ViT, where one can compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from ..circuit import liveness
from ..circuit.circuit import Circuit
from ..errors import InputError
from ..model.vit import ViT
from ..model.weights import build
from .plan import Linear, Plan, Range, SumNorm

TOLERANCE = 1e-6  # of the largest entry: how far an offset may vary over tokens and still be called one bias


def cut_between_live(circuit: Circuit) -> int:
    """How many cut edges lead from a live node to a live node (live: varies with the image and reaches the logits)."""
    graph = circuit.graph
    live = liveness.reaches_logits(graph, circuit.keep) & liveness.depends_on_input(graph, circuit.keep)
    cuts = 0
    for reader in graph.reader_nodes:
        if reader.kind == "logits" or live[list(reader.drives)].any():
            cuts += int((live[: reader.fan_in] & ~circuit.keep[reader.edges]).sum())
    return cuts


def to_dense(plan: Plan, circuit: Circuit, parameters: Mapping[str, Tensor]) -> ViT:
    """A ViT of shape ``plan.config`` that computes the same as the front plan ``plan``; raises where there is none."""
    cuts = cut_between_live(circuit)
    sums = [step for step in plan.steps if isinstance(step, SumNorm)]
    if cuts or not sums:
        found = f"{cuts} cut edges between live nodes" if cuts else "logits that do not depend on the image"
        raise InputError("no plain ViT computes this circuit", where="to_dense", found=found,
                         expected="no cut edge between live nodes",
                         remedy="keep the SparseViT, or find a circuit that cuts whole nodes only")
    head = parameters["head.weight"]
    state = {key: _spread(head.new_zeros(shape.shape), plan.parameters.get(key, ()), parameters.get(key))
             for key, shape in ViT(**plan.config.to_dict(), device="meta").state_dict().items()}
    _scale_mlp_biases(plan, state)
    _place_offsets(plan, sums, state)
    return build(plan.config, state, where="to_dense", device=head.device, dtype=head.dtype).eval()


def _spread(zeros: Tensor, slices: tuple[tuple[Range, ...], ...], value: Tensor | None) -> Tensor:
    """``value`` put back where it was sliced from, zeros elsewhere."""
    if value is None:
        return zeros
    if not slices:
        return value.detach().clone()
    index = [torch.cat([torch.arange(*span) for span in ranges]).to(zeros.device) for ranges in slices]
    zeros[torch.meshgrid(*index, indexing="ij")] = value.detach()
    return zeros


def _scale_mlp_biases(plan: Plan, state: dict[str, Tensor]) -> None:
    """A dead MLP group takes its share of the output bias with it."""
    shares: dict[str, float] = {}
    for step in plan.steps:
        if isinstance(step, Linear) and step.bias is not None and step.bias.key.endswith("fc2.bias"):
            shares[step.bias.key] = shares.get(step.bias.key, 0.0) + step.bias.scale
    for key, share in shares.items():
        state[key] *= share


def _place_offsets(plan: Plan, sums: list[SumNorm], state: dict[str, Tensor]) -> None:
    """The first reader's offset becomes part of the positions; what is added later, of the bias written just before."""
    offsets = [plan.constants[step.offset] if step.offset else torch.zeros_like(state["pos_embed"][0]) for step in sums]
    state["pos_embed"] += offsets[0]
    for (before, after), step in zip(pairwise(offsets), sums[1:], strict=True):
        change = after - before
        if not change.any():
            continue
        if (change - change[0]).abs().max() > TOLERANCE * change.abs().max():
            raise InputError("no plain ViT computes this circuit", where=f"to_dense: input of {step.readers[0]}",
                             expected="a folded constant that is the same for every token",
                             found="one that differs from token to token, as under mean ablation",
                             remedy="use zero ablation, or keep the SparseViT")
        key, scale = _bias_before(plan, step)
        state[key] += change[0] / (state[scale] if plan.config.init_values else 1.0)


def _bias_before(plan: Plan, step: SumNorm) -> tuple[str, str]:
    """The output bias that is written last before a sum, and the LayerScale behind it."""
    name = step.readers[0]
    layer = plan.config.depth if name == "logits" else int(name[1:].split(".")[0])
    if name.startswith("m"):
        return f"blocks.{layer}.attn.proj.bias", f"blocks.{layer}.ls1.gamma"
    return f"blocks.{layer - 1}.mlp.fc2.bias", f"blocks.{layer - 1}.ls2.gamma"
