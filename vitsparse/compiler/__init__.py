"""From a circuit to a smaller model: plan, passes, lowering, and the module that runs it."""

from .compile import BACK_PASSES, back, front, front_passes, logits_plan
from .plan import Plan, dense_flops
from .sparse_vit import SparseViT
from .sparsify import sparsify
from .translate import append_head, translate

__all__ = ["BACK_PASSES", "Plan", "SparseViT", "append_head", "back", "dense_flops", "front", "front_passes",
           "logits_plan", "sparsify", "translate"]
