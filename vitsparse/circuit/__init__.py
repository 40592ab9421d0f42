"""The values that flow through vitsparse, without torch: Graph, EdgeScores, Circuit and their files."""

from .circuit import Circuit
from .graph import GRANULARITIES, Graph, Reader, Sender
from .scores import EdgeScores

__all__ = ["GRANULARITIES", "Circuit", "EdgeScores", "Graph", "Reader", "Sender"]
