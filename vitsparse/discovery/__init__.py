"""Methods that find the circuit of a task. Each takes ``(model, batches, *, graph, ablation, ...)``."""

from .acdc import acdc
from .eap import eap
from .eap_ig import eap_ig
from .edge_pruning import edge_pruning
from .exact import exact
from .magnitude import magnitude
from .random import random
from .relp import relp

METHODS = {"acdc": acdc, "eap": eap, "eap_ig": eap_ig, "edge_pruning": edge_pruning, "exact": exact,
           "magnitude": magnitude, "random": random, "relp": relp}

__all__ = ["METHODS", "acdc", "eap", "eap_ig", "edge_pruning", "exact", "magnitude", "random", "relp"]
