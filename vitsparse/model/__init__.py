"""The dense Vision Transformer, where it comes from, and its edge-wise forward."""
