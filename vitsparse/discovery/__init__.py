"""Methods that find the circuit of a task. Each takes ``(model, batches, *, graph, ablation, ...)``."""

from .acdc import acdc
from .edge_pruning import edge_pruning
from .magnitude import magnitude
from .random import random

METHODS = {"acdc": acdc, "edge_pruning": edge_pruning, "magnitude": magnitude, "random": random}

__all__ = ["METHODS", "acdc", "edge_pruning", "magnitude", "random"]
