"""Triton kernels, one op per file; installed as ``vitsparse._triton``, imported only by ``vitsparse.backends.triton``."""
