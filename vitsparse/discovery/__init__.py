"""Methods that find the circuit of a task. Each takes ``(model, batches, *, graph, ablation, ...)``."""

from .acdc import acdc
from .budgeted import budgeted
from .eap import eap
from .eap_ig import eap_ig
from .edge_pruning import edge_pruning
from .exact import exact
from .magnitude import magnitude
from .node_importance import node_importance
from .random import random
from .relp import relp

METHODS = {"acdc": acdc, "budgeted": budgeted, "eap": eap, "eap_ig": eap_ig, "edge_pruning": edge_pruning,
           "exact": exact, "magnitude": magnitude, "node_importance": node_importance, "random": random, "relp": relp}

__all__ = ["METHODS", "acdc", "budgeted", "eap", "eap_ig", "edge_pruning", "exact", "magnitude", "node_importance",
           "random", "relp"]
