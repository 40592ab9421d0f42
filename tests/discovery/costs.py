"""Costs of circuits that can be computed by hand."""

from __future__ import annotations

from vitsparse.circuit import Circuit, Graph
from vitsparse.circuit.liveness import reaches_logits

MICROSECONDS = {"input": 10.0, "head": 3.0, "attn": 6.0, "mlp": 4.0}


class NodeCost:
    """So many microseconds for each live node, and ``tax`` for each edge that is cut between live nodes."""

    def __init__(self, depth: int, heads: int, mlp_groups: int = 1, tax: float = 0.0):
        self.tax = tax
        self.dense = self.latency(Circuit.full(Graph(depth, heads, mlp_groups=mlp_groups)))

    def latency(self, circuit: Circuit) -> float:
        alive = reaches_logits(circuit.graph, circuit.keep)
        nodes = sum(MICROSECONDS[node.kind] for node, live in zip(circuit.graph.sender_nodes, alive, strict=True)
                    if live or node.kind == "input")
        cut = sum(int((alive[: reader.fan_in] & ~circuit.keep[reader.edges]).sum())
                  for reader in circuit.graph.reader_nodes if not reader.drives or alive[list(reader.drives)].any())
        return nodes + self.tax * cut

    def describe(self) -> dict[str, float]:
        return {"tax": self.tax}
