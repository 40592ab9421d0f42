"""Triton kernels, one op per file; installed as ``vitsparse._triton``, imported by ``vitsparse.backends.triton``."""
