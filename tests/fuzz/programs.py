"""Mutated programs: refused with the step and the field, or run without touching what is not theirs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tests.compiler.cases import case_of
from tests.fuzz.pool import Bug
from tests.ops.kernels import HERE
from vitsparse.backends import native
from vitsparse.circuit import Graph
from vitsparse.model.config import ViTConfig
from vitsparse.ops import run_program
from vitsparse.ops.cpu_isa import using_cpu_isa

TINY = ViTConfig(img_size=6, patch_size=2, in_chans=1, num_classes=5, embed_dim=15, depth=2, num_heads=3,
                 mlp_ratio=1.2, init_values=0.5)
REFUSAL = re.compile(r"program: (step \d+ \(\w+\), )?[a-z][\w ()]+: expected .+, found -?\d+|"
                     r"images: expected \[batch, \d+, \d+, \d+\]|can't allocate memory: you tried to allocate")
OUTSIDE = re.compile("images: expected|memory")  # what only the call knows
HEADER, SLOT, STEP = 8, 4, 3  # words: the header, a slot, what a step has before its operands
WORDS = np.array([-(2**63), 2**63 - 1, -(2**62), 2**62, 2**48, 2**40, 2**32, 2**32 - 1, 2**31, -(2**31), 2**20,
                  2**20 + 1, 65536, 1000, 64, 17, 16, 15, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -16])


@dataclass(frozen=True)
class Original:
    words: np.ndarray
    weights: Tensor
    images: Tensor


def originals() -> list[Original]:
    """Programs of compiled circuits: both pools, constants, patterns, MLP groups, logits and features."""
    average = ViTConfig(**{**TINY.to_dict(), "global_pool": "avg", "init_values": None, "qkv_bias": False})
    found = []
    for kind, ablation, config, granularity in (
            ("full", "zero", TINY, "layer"), ("sparse", "mean", TINY, "qkv"), ("dense", "mean", average, "head"),
            ("dead parts", "mean", TINY, "qkv"), ("constant", "mean", average, "qkv")):
        case = case_of(kind, ablation, config=config, graph=Graph(2, 3, granularity, 2))
        sparse = case.sparse("cpu")
        for which in ("logits", "features"):
            program = sparse._compiled.program(which)
            found.append(Original(program.code.numpy(), program.blob, case.images))
    return found


class Attempt:
    """``attempt(seed)``: one mutated program, the same for the same seed; the outcome's name, or :class:`Bug`."""

    def __init__(self) -> None:
        torch.set_num_threads(2)
        self.originals, self.core = originals(), native.core()

    def __call__(self, seed: int) -> str:
        rng = np.random.default_rng(seed)
        original = self.originals[rng.integers(len(self.originals))]
        words = original.words.copy()
        for _ in range(rng.integers(1, 4)):
            words = MUTATIONS[rng.integers(len(MUTATIONS))](rng, words)
        weights = _damaged(rng, original.weights)
        images = original.images[: rng.integers(0, 4)].repeat(rng.integers(1, 4), 1, 1, 1)
        arguments = [_anywhere(rng, tensor) for tensor in (torch.from_numpy(words), weights, images)]
        with using_cpu_isa(HERE[rng.integers(len(HERE))]):
            return self._judge(*arguments)

    def _judge(self, words: Tensor, weights: Tensor, images: Tensor) -> str:
        """What the check at build time accepts must run, unless it is for other images."""
        accepted = True
        try:
            shape = self.core.validate_program(words.numpy(), weights.numel())
        except ValueError as error:
            accepted = named(error)
        before = [tensor.clone() for tensor in (words, weights, images)]
        try:
            out = run_program.call(images, words, weights)
        except (RuntimeError, ValueError) as error:
            named(error)
            if accepted and not OUTSIDE.search(str(error)):
                raise Bug(f"accepted when built, refused when run: {error}") from error
            return "for other images, or more memory" if accepted else "refused"
        if not all(torch.equal(*map(_bits, pair)) for pair in zip(before, (words, weights, images))):
            raise Bug("the run wrote into what it only reads")
        if accepted and list(out.shape) != [len(images), shape["rows"], shape["width"]]:
            raise Bug(f"a result of shape {list(out.shape)}, announced as {shape}")
        return "ran" if accepted else "ran, not to be built"


def named(error: Exception) -> bool:
    """False for a refusal that names its field; raises :class:`Bug` for any other."""
    if not REFUSAL.search(str(error).splitlines()[0]):
        raise Bug(f"a refusal that names no field: {type(error).__name__}: {error}") from error
    return False


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def _anywhere(rng: np.random.Generator, tensor: Tensor) -> Tensor:
    """Mostly the tensor itself; else one at any address, even or odd, as a view of bytes has it."""
    if rng.random() < 0.8 or tensor.numel() == 0:
        return tensor
    offset = int(rng.integers(64))
    buffer = bytearray(offset) + tensor.contiguous().numpy().tobytes()
    return torch.frombuffer(buffer, dtype=tensor.dtype, offset=offset).view(tensor.shape)


def _damaged(rng: np.random.Generator, weights: Tensor) -> Tensor:
    """Mostly the weights themselves; else fewer, other, or not finite."""
    choice, count = rng.integers(12), len(weights)
    if choice == 0:
        return weights[: rng.integers(0, count + 1)].clone()
    weights = weights.clone()
    if choice == 1:
        weights[rng.integers(0, count, 20)] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e38]).repeat(5)
    if choice == 2:
        _bits(weights).copy_(torch.from_numpy(rng.integers(0, 256, 4 * count, dtype=np.uint8)))
    return weights


Mutation = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def _at(rng: np.random.Generator, words: np.ndarray) -> int:
    return int(rng.integers(max(1, len(words))))


def _put(words: np.ndarray, position: int, value: int) -> np.ndarray:
    words[position: position + 1] = value  # nothing where there is no word
    return words


def flip(rng, words):
    """One bit of one word."""
    position = _at(rng, words)
    return _put(words, position, words[position: position + 1] ^ np.int64(np.uint64(1) << np.uint64(rng.integers(64))))


def extreme(rng, words):
    """One word becomes a round or a monstrous number."""
    return _put(words, _at(rng, words), rng.choice(WORDS))


def anything(rng, words):
    """One word becomes any 64 bits."""
    return _put(words, _at(rng, words), rng.integers(-(2**63), 2**63 - 1, endpoint=True))


def nudge(rng, words):
    """One word becomes a little more or less."""
    position = _at(rng, words)
    change = rng.choice([-16, -3, -2, -1, 1, 2, 3, 16])
    with np.errstate(over="ignore"):
        return _put(words, position, words[position: position + 1] + change)


def borrow(rng, words):
    """One word becomes another word of the program."""
    position, source = _at(rng, words), _at(rng, words)
    return _put(words, position, words[source: source + 1])


def truncate(rng, words):
    """The end is gone."""
    return words[: _at(rng, words)]


def remove(rng, words):
    """A few words are gone."""
    position = _at(rng, words)
    return np.delete(words, slice(position, position + rng.integers(1, 9)))


def insert(rng, words):
    """A few words are there twice, or new ones are in between."""
    position, source, count = _at(rng, words), _at(rng, words), rng.integers(1, 20)
    new = rng.choice(WORDS, count) if rng.random() < 0.5 else words[source: source + count]
    return np.insert(words, position, new)


@dataclass
class Parts:
    """A program taken apart; what can no longer be taken apart is left as it is."""

    header: np.ndarray
    slots: list[np.ndarray]
    steps: list[np.ndarray]

    @classmethod
    def of(cls, words: np.ndarray) -> Parts | None:
        if len(words) < HEADER or not 0 < words[2] < 1000 or len(words) < HEADER + SLOT * words[2]:
            return None
        first = HEADER + SLOT * int(words[2])
        slots, rest, steps = list(words[HEADER:first].reshape(-1, SLOT)), words[first:], []
        while len(rest) >= STEP and 0 <= rest[STEP - 1] <= len(rest) - STEP:
            end = STEP + int(rest[STEP - 1])
            steps.append(rest[:end])
            rest = rest[end:]
        return None if len(rest) or not steps else cls(words[:HEADER].copy(), slots, steps)

    def words(self) -> np.ndarray:
        self.header[2:4] = len(self.slots), len(self.steps)
        return np.concatenate([self.header, *self.slots, *self.steps])


def apart(change: Callable[[np.random.Generator, Parts], None]) -> Mutation:
    """A mutation of whole steps and slots, behind which the counts of the header are right again."""
    def mutation(rng: np.random.Generator, words: np.ndarray) -> np.ndarray:
        parts = Parts.of(words)
        if parts is None:
            return words
        change(rng, parts)
        return parts.words()
    return mutation


def drop_step(rng, parts):
    del parts.steps[_at(rng, parts.steps)]


def double_step(rng, parts):
    parts.steps.insert(_at(rng, parts.steps), parts.steps[_at(rng, parts.steps)].copy())


def swap_steps(rng, parts):
    """Two steps change places, each in the other's wave or its own."""
    i, j = _at(rng, parts.steps), _at(rng, parts.steps)
    parts.steps[i], parts.steps[j] = parts.steps[j].copy(), parts.steps[i].copy()
    if rng.random() < 0.5:
        parts.steps[i][1], parts.steps[j][1] = parts.steps[j][1], parts.steps[i][1]


def number_waves(rng, parts):
    """Waves that keep the rule of counting, and perhaps no other: all in one, each alone, or at random."""
    stride = rng.choice([0.0, 1.0, rng.random()])
    wave = 0
    for i, step in enumerate(parts.steps):
        wave += int(i > 0 and rng.random() < stride)
        parts.steps[i] = _put(step.copy(), 1, wave)


def swap_slots(rng, parts):
    i, j = _at(rng, parts.slots), _at(rng, parts.slots)
    parts.slots[i], parts.slots[j] = parts.slots[j].copy(), parts.slots[i].copy()


def alias_slots(rng, parts):
    """One slot moves onto another, or to the very end of the arena."""
    i, j = _at(rng, parts.slots), _at(rng, parts.slots)
    end = parts.header[4] - parts.slots[i][2] * parts.slots[i][3]
    parts.slots[i] = _put(parts.slots[i].copy(), 1, rng.choice([parts.slots[j][1], end, 0]))


def reshape_slot(rng, parts):
    """Rows or width of a slot become others; the arena grows with it, or does not."""
    i = _at(rng, parts.slots)
    slot = _put(parts.slots[i].copy(), int(rng.choice([2, 3])), rng.choice([1, 2, 5, 9, 10, 15, 16, 31, 64, 4096]))
    parts.slots[i] = slot
    if rng.random() < 0.5 and slot[0] == 0:
        parts.header[4] = max(parts.header[4], slot[1] + slot[2] * slot[3])


def move_view(rng, parts):
    """A small operand (a slot, a row, a column, a size) becomes another small number."""
    i = _at(rng, parts.steps)
    step = parts.steps[i].copy()
    small = [k for k in range(STEP, len(step)) if -1 <= step[k] <= 200]
    if small:
        step[rng.choice(small)] = rng.integers(-1, 20)
    parts.steps[i] = step


def change_opcode(rng, parts):
    i = _at(rng, parts.steps)
    parts.steps[i] = _put(parts.steps[i].copy(), 0, rng.integers(0, 9))


def remove_operand(rng, parts):
    """An operand is gone or there twice, and the step's own count is right."""
    i = _at(rng, parts.steps)
    step, position = parts.steps[i], STEP + int(rng.integers(max(1, len(parts.steps[i]) - STEP)))
    step = np.delete(step, slice(position, position + 1)) if rng.random() < 0.5 else \
        np.insert(step, position, step[position: position + 1])
    parts.steps[i] = _put(step, STEP - 1, len(step) - STEP)


WHOLE = (drop_step, double_step, swap_steps, number_waves, swap_slots, alias_slots, reshape_slot, move_view, move_view,
         move_view, change_opcode, remove_operand)
MUTATIONS: tuple[Mutation, ...] = (flip, extreme, anything, nudge, borrow, truncate, remove, insert, nudge, borrow,
                                   *map(apart, WHOLE))
