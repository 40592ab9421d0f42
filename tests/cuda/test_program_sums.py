"""SUM_NORM steps of many parts and sources: random ones, each way to launch them, against what their words mean."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

from tests.cuda.test_program import AT, WAYS, begin, check
from tests.ops import program_writer as w


@dataclass(frozen=True)
class Kind:
    """What random sums are like: how often a part minds something."""

    rows: int  # its square is the number of tokens
    width: int
    parts: int
    sources: int
    earlier: float = 0.0  # a part starts from another
    minus: float = 0.0
    twice: bool = False  # some term of a part is added again
    shift: int = 0  # columns by which sources and results lie off a whole vector
    in_place: bool = False


KINDS = {
    "side by side": Kind(3, 40, 8, 12),
    "chunks": Kind(3, 64, 13, 20, earlier=0.1),
    "two in registers": Kind(2, 264, 5, 6, earlier=0.3),
    "three passes": Kind(1, 1032, 3, 4, earlier=0.5),
    "starting from each other": Kind(3, 32, 18, 6, earlier=0.9),
    "more than there are bits": Kind(2, 24, 70, 9, earlier=0.05),
    "minuses": Kind(3, 32, 10, 9, minus=0.2),
    "twice": Kind(3, 32, 9, 9, twice=True),
    "unaligned": Kind(3, 40, 9, 9, shift=3),
    "ragged": Kind(3, 37, 9, 9, earlier=0.1),
    "in place": Kind(3, 40, 9, 9, earlier=0.2, in_place=True),
}


def write(kind: Kind, seed: int) -> w.ProgramWriter:
    """Sources by products and constants, one SUM_NORM, and its results as columns of the output."""
    rng, tokens, width = random.Random(seed), kind.rows**2, kind.width
    torch.manual_seed(seed)
    p, first = begin(kind.rows, width)
    stride = width + kind.shift
    made = p.slot(tokens, stride * kind.sources + kind.shift)
    out = p.result(tokens, 2 * stride * kind.parts + kind.shift)
    sources = [p.view(made, col0=stride * i + kind.shift) for i in range(kind.sources)]
    p.step(w.FILL, p.store(torch.full((tokens, p.slots[out][3]), 0.5)), p.view(out), p.slots[out][3])
    with p.together():
        for view in sources:
            p.linear(p.view(first), view, torch.randn(width, width) / width**0.5, torch.randn(width))
    sources.append(p.view(p.constant(torch.randn(tokens, width))))
    gone: set[int] = set()
    parts: list[w.Part] = []
    for i in range(kind.parts):
        left = [s for s in range(len(sources)) if s not in gone]
        adds = rng.sample(left, rng.randrange(len(left) + 1))
        minuses = [s for s in left if s not in adds and rng.random() < kind.minus]
        stored = [j for j, part in enumerate(parts) if part.total != w.NONE]
        adds += [len(sources) + j for j in rng.sample(stored, min(len(stored), 2)) if rng.random() < kind.earlier]
        if kind.twice and adds and rng.random() < 0.5:
            adds.append(adds[0])
        total = normed = w.NONE
        if rng.random() < 0.6:
            total = p.view(out, col0=2 * stride * i + kind.shift)
        if total == w.NONE or rng.random() < 0.6:
            normed = p.view(out, col0=stride * (2 * i + 1) + kind.shift)
        if kind.in_place and len(left) > 3 and rng.random() < 0.3:
            gone.add(left[0])
            total = sources[left[0]]
        offset = rng.choice([None, torch.randn(width), torch.randn(tokens, width)])
        parts.append(w.Part(adds, minuses, offset, total, normed))
    p.sum_norms(sources, width, 1e-5, parts)
    for i, part in enumerate(parts):  # what was stored elsewhere is seen too
        if part.total != w.NONE and part.total[0] == made:
            p.sum_norm([part.total], None, width, 1e-5, p.view(out, col0=2 * stride * i + kind.shift), w.NONE)
    return p


@pytest.mark.parametrize("name", KINDS)
def test_few_rows(ops_on, name):
    seed = list(KINDS).index(name)
    check(ops_on, AT[seed % len(AT)], write(KINDS[name], seed), 2, ways=WAYS, seed=seed)


@pytest.mark.parametrize("name", KINDS)
def test_many_rows(ops_on, name):
    """So many images that several sums are made side by side."""
    seed = list(KINDS).index(name)
    images = -(-256 // KINDS[name].rows ** 2)
    check(ops_on, AT[(seed + 1) % len(AT)], write(KINDS[name], seed), images, ways=WAYS[seed % 3:][:1], seed=seed)


@pytest.mark.parametrize("at", AT, ids=str)
def test_every_dtype_side_by_side(ops_on, at):
    check(ops_on, at, write(KINDS["chunks"], 20), 29, ways=("steps", "persistent"), seed=3)
