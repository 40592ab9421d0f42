"""Discover the circuit of a Vision Transformer, prune it, and run what is left on kernels that skip the rest."""

from __future__ import annotations

from .version import __version__
