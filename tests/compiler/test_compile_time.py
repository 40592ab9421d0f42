"""How much work compiling is: counted, not timed. The benchmarks of whole models take the seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.strategies import make_model
from vitsparse.circuit import Circuit, Graph
from vitsparse.compiler import Plan, back, front, logits_plan, translate
from vitsparse.compiler.outline import outline
from vitsparse.compiler.passes.drop_dead import drop_dead
from vitsparse.compiler.passes.fold_constants import fold_constants
from vitsparse.compiler.passes.group_readers import group_readers
from vitsparse.compiler.passes.narrow_tokens import narrow_tokens
from vitsparse.compiler.passes.widen_products import widen_products
from vitsparse.compiler.steps import SumNorm
from vitsparse.model.config import ViTConfig

SIZES = [((6, 4), (12, 4)), ((4, 8), (4, 16))]
"""Depth and heads of a smaller and a larger model."""


def config_of(depth: int, heads: int) -> ViTConfig:
    return ViTConfig(img_size=4, patch_size=2, in_chans=1, num_classes=3, embed_dim=2 * heads, depth=depth,
                     num_heads=heads)


def circuit_of(graph: Graph, share: float = 0.5) -> Circuit:
    """``share`` of the edges, at random: with half of them every reader has senders and an offset of its own."""
    return Circuit(graph, np.random.default_rng(0).random(graph.num_edges) < share)


def values_of(graph: Graph, config: ViTConfig) -> torch.Tensor:
    """Ablation values [S, T, D] that are not zero."""
    return torch.randn(len(graph.senders), config.num_tokens, config.embed_dim,
                       generator=torch.Generator().manual_seed(0))


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """How many functions are called inside, Python's and C's; generators count for each value that they give."""
    count, before = [0], sys.getprofile()

    def profile(frame: Any, event: str, argument: Any) -> None:
        count[0] += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        yield count
    finally:
        sys.setprofile(before)


class CountedNumbers(TorchDispatchMode):
    """How many numbers go into tensor operations, and which operations these are."""

    def __init__(self):
        super().__init__()
        self.read, self.names = 0, []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        tensors = [each for value in arguments for each in (value if isinstance(value, list | tuple) else [value])]
        if not function.is_view:
            self.read += sum(each.numel() for each in tensors if isinstance(each, torch.Tensor))
            self.names.append(str(function))
        return function(*arguments, **(options or {}))


def calls(work: Callable[[], Any]) -> int:
    work()  # whatever is made once for all, is made
    with counted_calls() as count:
        work()
    return count[0]


@pytest.mark.parametrize("granularity", ["head", "qkv"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.1])
@pytest.mark.parametrize(("small", "large"), SIZES)
def test_work_grows_no_faster_than_edges_times_log_edges(granularity, share, small, large):
    found = []
    for depth, heads in (small, large):
        config, graph = config_of(depth, heads), Graph(depth, heads, granularity)
        circuit, values, state = circuit_of(graph, share), values_of(graph, config), make_model(config).state_dict()

        def compile_all(config=config, circuit=circuit, values=values, state=state) -> None:
            plan = logits_plan(front(config, circuit, values, state), state)
            assert plan.memory[1] >= 0

        found.append((graph.num_edges, calls(compile_all), calls(lambda c=config, x=circuit: outline(c, x))))
    (edges, *work), (more_edges, *more_work) = found
    allowed = more_edges * log(more_edges) / (edges * log(edges))
    assert [more / less <= allowed for less, more in zip(work, more_work, strict=True)] == [True, True], found


def front_half(share: float) -> Plan:
    """The front plan of 12 layers of 8 heads."""
    config, graph = config_of(12, 8), Graph(12, 8)
    return front(config, circuit_of(graph, share), values_of(graph, config), make_model(config).state_dict())


def test_passes_leave_alone_what_they_do_not_change():
    """A step of a long plan has a hundred senders; one that stays as it is must not be made again."""
    plan = front_half(0.5)
    for run_pass in (drop_dead, narrow_tokens, group_readers, widen_products):
        before = {id(step) for step in plan.steps if isinstance(step, SumNorm)}
        after = run_pass(plan)
        sums = [step for step in after.steps if isinstance(step, SumNorm)]
        assert sum(id(step) in before for step in sums) >= 0.9 * len(sums), run_pass.__name__
        plan = after
    assert len(sums) > 90


def naive(share: float, *, heads: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Plan, dict[str, torch.Tensor]]:
    config, graph = config_of(3, heads), Graph(3, heads, "qkv")
    model = make_model(config, dtype=dtype)
    return drop_dead(translate(config, circuit_of(graph, share), values_of(graph, config))), model.state_dict()


def test_nothing_is_computed_where_nothing_is_constant():
    plan, state = naive(1.1)
    with CountedNumbers() as numbers:
        folded = fold_constants(plan, state)
    assert numbers.names == []
    assert folded.steps == plan.steps


def test_constants_are_read_once_per_layer_not_once_per_reader():
    """Twice as many heads make twice as many readers and constants; each constant is read as often."""
    often = []
    for heads in (8, 16):
        plan, state = naive(0.5, heads=heads)
        with CountedNumbers() as numbers:
            folded = fold_constants(plan, state)
        offsets = [step.offset for step in folded.steps if isinstance(step, SumNorm) and step.offset]
        assert len(set(offsets)) == len(offsets) > 4 * heads
        held = sum(value.numel() for value in (*plan.constants.values(), *folded.constants.values()))
        often.append(numbers.read / held)
    assert often[1] <= 1.1 * often[0], often


def test_offsets_are_sums_rounded_once():
    """In float32 within half a unit in the last place of the sum in float64; equal cuts share one constant."""
    plan, state = naive(0.5)
    folded = fold_constants(plan, state)
    wide, exact = (fold_constants(plan, {key: value.double() for key, value in state.items()}).constants,
                   {step.readers: step for step in plan.steps if isinstance(step, SumNorm)})
    checked = 0
    for step in (each for each in folded.steps if isinstance(each, SumNorm) and each.offset):
        names = [view.name for view in exact[step.readers].senders if view.name in plan.constants]
        value, double = folded.constants[step.offset], wide[step.offset]
        unit = torch.nextafter(value.abs(), torch.full_like(value, torch.inf)).double() - value.abs().double()
        assert ((value.double() - double).abs() <= 0.500001 * unit).all()
        if len(names) == len(exact[step.readers].senders) - len(step.senders):  # ablation values alone
            total = torch.stack([plan.constants[name].double() for name in names]).sum(0)
            assert torch.allclose(double, total, rtol=1e-14, atol=1e-14)
            checked += 1
    assert checked > 5


def test_equal_cuts_have_one_offset():
    graph, config = Graph(3, 4), config_of(3, 4)
    keep = np.array([not name.startswith(("a0.h1->", "m1->")) for name in graph.edge_names])
    plan = fold_constants(drop_dead(translate(config, Circuit(graph, keep), values_of(graph, config))),
                          make_model(config).state_dict())
    sums = [step for step in plan.steps if isinstance(step, SumNorm)]
    assert len(plan.constants) == 2  # without a0.h1, and without m1 as well
    assert {step.offset for step in sums} == {None, *plan.constants}
    grouped = [step for step in group_readers(plan).steps if isinstance(step, SumNorm)]
    assert [len(step.readers) for step in grouped] == [3, 1, 4, 4, 1, 1]


def test_steps_are_as_many_as_nodes():
    """However many edges there are."""
    plan = back(front_half(0.5))
    nodes = 12 * (8 + 1)
    assert len(plan.steps) <= 5 * nodes
