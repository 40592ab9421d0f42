"""Back from a plan to a plain ViT, where one can compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import torch
from torch import Tensor

from ..circuit import liveness
from ..circuit.circuit import Circuit
from ..circuit.operator import OPERATOR, Cuts
from ..errors import InputError
from ..model.vit import ViT
from ..model.weights import build
from .plan import Plan
from .steps import Linear, Range, SumNorm

TOLERANCE = 1e-6  # of the largest entry: how far an offset may vary over tokens and still be called one bias


def cut_between_live(circuit: Circuit) -> int:
    """How many cut edges lead from a live node to a live node (live: varies with the image and reaches the logits).

    Of an operator graph, how many cuts are on the residual stream itself: those inside the sub-blocks have twins.
    """
    graph = circuit.graph
    if graph.granularity == OPERATOR:
        return Cuts(graph.depth, circuit.keep).skips
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
        raise _no_twin("circuit", "no cut edge between live nodes", found)
    head = parameters["head.weight"]
    state = {}
    for key, tensor in ViT(**plan.config.to_dict(), device="meta").state_dict().items():
        blank = torch.full(tensor.shape, float(key.endswith("gamma")), dtype=head.dtype, device=head.device)
        state[key] = _spread(blank, plan.parameters.get(key, ()), parameters.get(key))
    _scale_mlp_biases(plan, state)
    _place_offsets(plan, sums, state)
    return build(plan.config, state, where="to_dense", device=head.device, dtype=head.dtype).eval()


def _spread(blank: Tensor, slices: tuple[tuple[Range, ...], ...], value: Tensor | None) -> Tensor:
    """``blank`` with ``value`` put back where it was sliced from."""
    if value is None:
        return blank
    if not slices:
        return value.detach().clone()
    index = [torch.cat([torch.arange(*span) for span in ranges]).to(blank.device) for ranges in slices]
    blank[torch.meshgrid(*index, indexing="ij")] = value.detach()
    return blank


def _scale_mlp_biases(plan: Plan, state: dict[str, Tensor]) -> None:
    """A dead MLP group takes its share of the output bias with it."""
    shares: dict[str, float] = {}
    for step in plan.steps:
        if isinstance(step, Linear) and step.bias is not None and step.bias.key.endswith("fc2.bias"):
            shares[step.bias.key] = shares.get(step.bias.key, 0.0) + step.bias.scale
    for key, share in shares.items():
        state[key] *= share


def _place_offsets(plan: Plan, sums: list[SumNorm], state: dict[str, Tensor]) -> None:
    """The first offset becomes part of the positions; what a later place adds, of the bias written just before it."""
    zero = torch.zeros_like(state["pos_embed"][0])
    before = None
    for place, steps in groupby(sums, key=_place):
        offset, *others = [plan.constants[step.offset] if step.offset else zero for step in steps]
        if not all(torch.equal(offset, other) for other in others):
            raise _no_twin(f"inputs of {place}", "one folded constant for all heads of a layer", "several")
        if before is None:
            state["pos_embed"] += offset
        elif (offset != before).any():
            key, scale = _bias_before(plan, place)
            state[key] += _same_for_all(offset - before, place) / (state[scale] if plan.config.init_values else 1.0)
        before = offset


def _place(step: SumNorm) -> str:
    """``a{l}``, ``m{l}`` or ``logits``: where in the residual stream of a plain ViT a reader sits."""
    return step.readers[0].split(".")[0]


def _same_for_all(change: Tensor, place: str) -> Tensor:
    """The row [D] that all rows of ``change`` [T, D] are."""
    if (change - change[0]).abs().max() > TOLERANCE * change.abs().max():
        raise _no_twin(f"input of {place}", "a folded constant that is the same for every token",
                       "one that differs from token to token, as under mean ablation")
    return change[0]


def _bias_before(plan: Plan, place: str) -> tuple[str, str]:
    """The output bias that is written last before a place, and the LayerScale behind it."""
    layer = plan.config.depth if place == "logits" else int(place[1:])
    if place.startswith("m"):
        return f"blocks.{layer}.attn.proj.bias", f"blocks.{layer}.ls1.gamma"
    return f"blocks.{layer - 1}.mlp.fc2.bias", f"blocks.{layer - 1}.ls2.gamma"


def _no_twin(where: str, expected: str, found: str) -> InputError:
    return InputError("no plain ViT computes this circuit", where=f"to_dense: {where}", expected=expected, found=found,
                      remedy="keep the SparseViT, or find a circuit that cuts whole nodes only, under zero ablation")
