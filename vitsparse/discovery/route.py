"""What has to run again when the inputs of one reader change, and what that reads: integers and booleans alone.

A cut into reader j changes what j drives and whatever has a kept path from there; of these, only senders with a kept
path to ``logits`` are ever seen. Everything else keeps what it wrote. So a :class:`Route` through the later stages is
the same for all cuts into one reader: an edge into j is on no path from j, nor on one from what j drives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..circuit import Graph
from ..circuit.graph import Reader
from ..circuit.liveness import depends_on, reaches_logits


@dataclass(frozen=True)
class Step:
    """One stage of a route: attention (``kind`` "attn"), "mlp" or "logits" of ``layer``.

    ``rows`` bool [G, W]: the kept edges of those readers whose input is summed, one row for all readers that keep the
    same. ``feeds`` says what each input serves: numbers ``part * heads + head`` of the queries, keys and values (part
    0, 1, 2); empty sets but for attention. ``given``: an input that is not summed but handed in comes before the
    others, and ``feeds`` has it. ``writes`` are the positions of the senders that run.
    """

    kind: str
    layer: int
    rows: np.ndarray
    feeds: tuple[tuple[int, ...], ...]
    given: bool
    writes: tuple[int, ...]


@dataclass(frozen=True)
class Route:
    """The steps from the stage of ``given`` to the logits, and ``changed``: the senders that they run, ascending.

    ``given`` is the reader whose inputs are handed in; None: nothing is, and all that is live runs.
    """

    given: Reader | None
    steps: tuple[Step, ...]
    changed: tuple[int, ...]

    @classmethod
    def through(cls, graph: Graph, keep: np.ndarray, given: Reader | None = None) -> Route:
        """The route of circuit ``keep`` (bool [E])."""
        runs = reaches_logits(graph, keep)
        if given is None:
            runs[0] = False  # the input: it writes the same in every circuit
        else:
            runs &= depends_on(graph, keep, given.drives)
        return cls(given, tuple(_steps(graph, keep, runs, given)), tuple(np.flatnonzero(runs).tolist()))


def _steps(graph: Graph, keep: np.ndarray, runs: np.ndarray, given: Reader | None) -> Iterator[Step]:
    stages: dict[tuple[int, bool], list[Reader]] = {}
    for reader in graph.reader_nodes:
        stages.setdefault((reader.layer, reader.kind == "mlp"), []).append(reader)
    for readers in stages.values():
        kind = readers[0].kind if readers[0].kind in ("mlp", "logits") else "attn"
        writes = sorted({sender for reader in readers for sender in reader.drives if runs[sender]})
        if not writes and kind != "logits":
            continue
        wanted: dict[bytes, tuple[np.ndarray, list[int]]] = {}
        own: list[int] | None = None
        for reader in readers:
            feeds = _feeds(graph, reader, writes)
            if kind == "attn" and not feeds:
                continue
            if given is not None and reader.name == given.name:
                own = feeds
            else:
                wanted.setdefault(keep[reader.edges].tobytes(), (keep[reader.edges], []))[1].extend(feeds)
        rows = np.array([row for row, _ in wanted.values()], dtype=bool).reshape(len(wanted), readers[0].fan_in)
        feeds = [] if own is None else [tuple(own)]
        yield Step(kind, readers[0].layer, rows, (*feeds, *(tuple(served) for _, served in wanted.values())),
                   own is not None, tuple(writes))


def _feeds(graph: Graph, reader: Reader, writes: list[int]) -> list[int]:
    """The queries, keys and values that ``reader`` serves, of the heads among ``writes``."""
    if reader.kind in ("mlp", "logits"):
        return []
    parts = ("qkv".index(reader.kind),) if reader.kind in ("q", "k", "v") else (0, 1, 2)
    if graph.granularity == "block":
        heads = range(graph.heads) if reader.drives[0] in writes else ()
    else:
        heads = [graph.sender_nodes[sender].index for sender in reader.drives if sender in writes]
    return [part * graph.heads + head for head in heads for part in parts]
