"""Training and fine-tuning: one loop for the dense ViT and for the sparse one, resumable at every step."""

from .loop import Stream, fit, step_seed
from .recipe import AmpPolicy, Recipe, amp_policy, learning_rate
from .records import EpochRow, GradientRow, History

__all__ = ["AmpPolicy", "EpochRow", "GradientRow", "History", "Recipe", "Stream", "amp_policy", "fit", "learning_rate",
           "step_seed"]
