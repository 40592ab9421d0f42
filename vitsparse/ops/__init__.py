"""One file for each op: its contract (shapes, checks, schema, fake, gradient) and its dispatch to the backends."""

from . import triton  # noqa: F401  (registers the ops of the Triton kernels, for every contract)
