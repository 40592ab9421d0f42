"""Where tensors meet arithmetic: the reference in plain torch, and the bridges to the native libraries."""
