"""The time that a device's limits leave for whole circuits (benchmarks/model/circuits.py), step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.model.circuits import named_circuits
from vitsparse.circuit import Circuit
from vitsparse.compiler.compile import TARGETS, front, logits_plan
from vitsparse.compiler.joined_steps import Joined
from vitsparse.compiler.plan import Plan
from vitsparse.compiler.steps import ApplyPattern, Embed, Linear, Step, length
from vitsparse.model.vit import ViT

from .devices import BARRIER_SECONDS, DEVICES, LAUNCH_SECONDS, Device, Work

BATCHES = (1, 128)
HALF_BYTES = 2
SHAPE = {"img_size": 64, "patch_size": 8, "embed_dim": 256, "depth": 12, "num_heads": 8, "num_classes": 200}


def circuit_plans() -> Iterator[tuple[str, str, Plan]]:
    """(circuit, target, plan) of the model of the latency tables: 65 tokens, width 256, 12 layers, 8 heads."""
    torch.manual_seed(0)
    model = ViT(**SHAPE)
    state = {key: value.detach() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for name, circuit in named_circuits(SHAPE["depth"], SHAPE["num_heads"]).items():
            first = front(model.config, circuit, _zeros(circuit, model), state)
            yield from ((name, target, logits_plan(first, state, target)) for target in TARGETS
                        if target != "cpu")


def _zeros(circuit: Circuit, model: ViT) -> torch.Tensor:
    """Zero ablation: [senders, tokens, width]."""
    return torch.zeros(len(circuit.graph.senders), model.config.num_tokens, model.config.embed_dim)


def work_of(step: Step, batch: int) -> Work:
    """Of one step in float16; each sender, weight and result moves once."""
    activations = step.bytes // 4 * batch
    return Work(step.flops * batch, HALF_BYTES * (activations + _weights(step)))


def _weights(step: Step) -> int:
    """Numbers of the matrices of a step."""
    if isinstance(step, Linear):
        return step.source.width * step.out.width
    if isinstance(step, Embed):
        return step.patch_dim * step.out.width
    if isinstance(step, ApplyPattern):
        return step.heads * length(step.out.rows) * length(step.v.rows)
    return sum(map(_weights, step.steps)) if isinstance(step, Joined) else 0


def in_a_graph(plan: Plan, device: Device, batch: int) -> float:
    """Seconds with a kernel for each step, replayed from a CUDA graph."""
    return sum(work_of(step, batch).predicted(device) for step in plan.steps)


def in_one_kernel(plan: Plan, device: Device, batch: int) -> float:
    """Seconds in one persistent kernel with a barrier after each wave."""
    waves = (sum((work_of(step, batch) for step in wave), Work(0, 0)) for wave in plan.waves)
    return LAUNCH_SECONDS + sum(wave.seconds(device) + BARRIER_SECONDS for wave in waves)


def rows() -> Iterator[dict[str, Any]]:
    """A row for each circuit, target, device and batch size, with the faster way of running it."""
    for circuit, target, plan in circuit_plans():
        for device in DEVICES:
            for batch in BATCHES:
                graph, kernel = in_a_graph(plan, device, batch), in_one_kernel(plan, device, batch)
                yield {"circuit": circuit, "target": target, "device": device.name, "batch": batch,
                       "steps": len(plan.steps), "waves": len(plan.waves),
                       "mflop_per_image": round(plan.flops / 1e6, 3),
                       "graph_us": round(1e6 * graph, 1), "one_kernel_us": round(1e6 * kernel, 1)}
