"""The ranks of a run: alone nothing is sent, two add up, gather and wait for each other."""

from __future__ import annotations

import math

import pytest
import torch

from vitsparse.data.ranks import Ranks, ranks
from vitsparse.errors import InputError


@pytest.fixture
def environment(monkeypatch):
    """Set torchrun's variables; what an earlier call of ranks() found is forgotten before and after."""
    ranks.cache_clear()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    yield lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]
    ranks.cache_clear()


def alone_is_first(found: Ranks) -> bool:
    return found == Ranks(0, 1, 0) and found.is_first


@pytest.mark.parametrize("values", [{}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, {"WORLD_SIZE": "8"}])
def test_alone_nothing_is_connected(environment, values):
    environment(**values)
    assert alone_is_first(ranks())
    assert not torch.distributed.is_initialized()
    tensor = torch.arange(3)
    assert ranks().sum(tensor) is tensor
    assert ranks().gather([1.5, 2]) == [[1.5, 2.0]]
    ranks().barrier()


@pytest.mark.parametrize("values", [{"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"},
                                    {"RANK": "0", "WORLD_SIZE": "2"}])
def test_half_an_environment_is_refused(environment, values):
    environment(**values)
    with pytest.raises(InputError, match="WORLD_SIZE"):
        ranks()


@pytest.mark.parametrize(("n", "world"), [(0, 2), (1, 3), (7, 2), (32, 5)])
def test_parts_cover_everything_in_order(n, world):
    parts = [Ranks(rank, world).part(n) for rank in range(world)]
    assert [i for part in parts for i in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def everything(numbers: list[list[float]]) -> dict:
    before = torch.distributed.is_initialized()
    here = ranks()
    mine = torch.full((2, 3), here.rank + 1.0).T  # not contiguous
    total = here.sum(mine)
    here.barrier()
    gathered = here.gather(numbers[here.rank])
    return {"before": before, "rank": here.rank, "world": here.world, "sum": total.tolist(), "mine": mine.tolist(),
            "gathered": [list(map(str, row)) for row in gathered], "none": here.gather([])}


def test_two_ranks_add_up_and_gather(two_ranks):
    numbers = [[0.1, math.inf], [1 / 3, -2.5, math.nan]]
    first, second = two_ranks("tests.data.test_ranks:everything", numbers)
    assert not first["before"]  # importing connects nothing
    assert (first["rank"], second["rank"], first["world"], second["world"]) == (0, 1, 2, 2)
    assert first["sum"] == second["sum"] == [[3.0, 3.0]] * 3
    assert first["mine"] == [[1.0, 1.0]] * 3
    assert first["gathered"] == second["gathered"] == [list(map(str, row)) for row in numbers]
    assert first["none"] == [[], []]


def left_alone() -> str:
    here = ranks()
    here.barrier()
    if not here.is_first:
        return "gone"
    with pytest.raises(InputError) as caught:
        here.gather([1.0])
    return str(caught.value)


def test_a_rank_that_is_gone_is_said(two_ranks):
    first, _ = two_ranks("tests.data.test_ranks:left_alone")
    assert first.startswith("another process of this run has ended\n  where: rank 0 of 2")
