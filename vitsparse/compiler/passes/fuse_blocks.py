"""For GPUs: a kernel for a head's whole attention, one for a whole MLP, and norms made by whoever reads them.

What only the next step reads need not be written to memory: q, k and v between a product and its attention; the normed
input and the hidden units of an MLP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ..joined_steps import Mlp, NormLinear, QkvAttention
from ..plan import Plan
from ..steps import Attention, Linear, Step, SumNorm, View, length

MOST_GATHERED = 4
"""Values that the blocks of a product may add up each for themselves."""
MOST_TOKENS, MOST_HEAD_DIM = 128, 64
"""Of an attention in one kernel: keys and values of a head stay in shared memory, sums in registers."""
MOST_OUTPUTS = 256
"""Of an MLP in one kernel: the sums of a tile of rows stay in registers (kernels/cuda/mlp.h)."""


def fuse_attention(plan: Plan) -> Plan:
    """Join each attention with the one product that makes its q, k and v, side by side, for it alone."""
    return plan.after("fuse_attention", steps=_replaced(plan, Attention, _qkv_of, lambda qkv, attention: QkvAttention(
        qkv, attention)))


def fuse_mlps(plan: Plan) -> Plan:
    """Join each MLP's two products with the sum and norm in front of them, where these serve nobody else."""
    return plan.after("fuse_mlps", steps=_replaced(plan, Linear, _front_of, lambda front, down: Mlp(*front, down)))


def fuse_norms(plan: Plan) -> Plan:
    """Join a sum and norm with the product that alone reads it: one wave less, where launches count.

    Each block then adds up the rows it needs by itself, so this is for few senders.
    """
    return plan.after("fuse_norms", steps=_replaced(plan, Linear, _norm_of, NormLinear))


def _norm_of(step: Linear, private: set[str], writer: dict[str, Step]) -> SumNorm | None:
    norm = writer.get(step.source.name)
    fits = (step.source.name in private and isinstance(norm, SumNorm) and norm.normed == step.source
            and not step.accumulate and len(norm.reads) <= MOST_GATHERED)
    return norm if fits else None  # type: ignore[return-value]


def _replaced(plan: Plan, kind: type[Step], find: Callable, join: Callable) -> tuple[Step, ...]:
    """The steps, with what ``find`` names in front of a step of ``kind`` gone and the two joined in its place."""
    private, writer = _privates(plan), {view.name: step for step in plan.steps for view in step.writes}
    gone: set[int] = set()
    joined: dict[int, Step] = {}
    for step in plan.steps:
        found = find(step, private, writer) if isinstance(step, kind) else None
        if found is not None:
            gone |= {id(part) for part in (found if isinstance(found, tuple) else (found,))}
            joined[id(step)] = join(found, step)
    return tuple(joined.get(id(step), step) for step in plan.steps if id(step) not in gone)


def _privates(plan: Plan) -> set[str]:
    """Values written by one step and read by one step."""
    readers = Counter(name for step in plan.steps for name in {view.name for view in step.reads})
    writers = Counter(name for step in plan.steps for name in {view.name for view in step.writes})
    return {name for name, count in writers.items() if count == 1 and readers[name] == 1} - {plan.output.name}


def _qkv_of(step: Attention, private: set[str], writer: dict[str, Step]) -> Linear | None:
    qkv = writer.get(step.q.name)
    if step.q.name not in private or not isinstance(qkv, Linear) or length(step.k.rows) > MOST_TOKENS:
        return None
    plain = not (qkv.accumulate or qkv.scale) and qkv.activation == "none" and step.head_dim <= MOST_HEAD_DIM
    width = step.out.width
    thirds = tuple(View(step.q.name, qkv.out.rows, (part * width, (part + 1) * width)) for part in range(3))
    return qkv if plain and step.reads == thirds and qkv.out.width == 3 * width else None


def _front_of(step: Linear, private: set[str], writer: dict[str, Step]) -> tuple[SumNorm, Linear] | None:
    up = writer.get(step.source.name)
    if (step.source.name not in private or not isinstance(up, Linear) or up.activation != "gelu" or up.accumulate
            or up.scale or up.out != step.source or step.accumulate or step.activation != "none" or step.norm):
        return None
    front = writer.get(up.source.name)
    fits = (up.source.name in private and isinstance(front, SumNorm) and front.normed == up.source
            and step.out.width <= MOST_OUTPUTS)
    return (front, up) if fits else None  # type: ignore[return-value]


