"""Methods that find the circuit of a task. Each takes ``(model, batches, *, graph, ablation, ...)``."""

from .acdc import acdc

METHODS = {"acdc": acdc}

__all__ = ["METHODS", "acdc"]
