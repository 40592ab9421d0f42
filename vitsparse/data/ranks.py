"""The processes of one run: one alone, or the N that ``torchrun --nproc-per-node N`` starts.

All ranks run the same program on their own part of the images, add up what they found, and go on with the same numbers,
so that every rank returns the same value. Files are written by the first rank only.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

_FIELDS = {"rank": "RANK", "world": "WORLD_SIZE", "local": "LOCAL_RANK"}  # the names that torchrun gives them


@dataclass(frozen=True)
class Ranks:
    """Process ``rank`` of ``world``, number ``local`` on its machine (that of its GPU). Alone by default.

    What talks to the other ranks (:meth:`sum`, :meth:`gather`, :meth:`barrier`) must be called by all of them in the
    same order; it raises :class:`InputError` when one of them is gone. Alone, nothing is sent anywhere.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def part(self, n: int) -> range:
        """Those of ``n`` things that are this rank's: contiguous, all ranks' together are 0 .. n - 1 in order."""
        return range(n * self.rank // self.world, n * (self.rank + 1) // self.world)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors (equal in shape, dtype and kind of device): the same bits on every rank."""
        if self.world == 1:
            return tensor
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        try:
            torch.distributed.all_reduce(total)
        except RuntimeError as error:
            raise InputError("another process of this run has ended", where=f"rank {self.rank} of {self.world}",
                             found=str(error).strip().splitlines()[0],
                             remedy="what it said is the cause; --resume goes on from what was written") from error
        return total

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers of every rank, in the order of the ranks; each may have its own count of them."""
        lengths = torch.zeros(self.world, dtype=torch.int64)
        lengths[self.rank] = len(numbers)
        lengths = self.sum(lengths)
        table = torch.zeros(self.world, int(lengths.max()), dtype=torch.float64)
        table[self.rank, :len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
        return [row[:n].tolist() for row, n in zip(self.sum(table), lengths, strict=True)]

    def barrier(self) -> None:
        """Wait for all ranks: what the first one wrote before is there for the others after."""
        self.sum(torch.zeros(1))


@functools.cache
def ranks() -> Ranks:
    """This process among those of the run, as torchrun's environment says; the first call connects them.

    CPU tensors travel through gloo, those on a GPU through NCCL. Raises :class:`InputError` for an environment that
    is not whole.
    """
    found = {field: os.environ.get(name) for field, name in _FIELDS.items()}
    if found["rank"] is None or found["world"] in (None, "1"):
        return Ranks()
    if not all(value and value.isdecimal() for value in found.values()):
        raise InputError("the environment is not that of torchrun", where=", ".join(_FIELDS.values()), found=found,
                         remedy="start with torchrun, or unset these variables")
    if not torch.distributed.is_initialized():  # a program around this one may have connected them for itself
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(torch.distributed.destroy_process_group)
    return Ranks(**{field: int(value) for field, value in found.items()})
