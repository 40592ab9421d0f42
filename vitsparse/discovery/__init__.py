"""Methods that find the circuit of a task. Each takes ``(model, batches, *, graph, ablation, ...)``."""

from .acdc import acdc
from .magnitude import magnitude
from .random import random

METHODS = {"acdc": acdc, "magnitude": magnitude, "random": random}

__all__ = ["METHODS", "acdc", "magnitude", "random"]
