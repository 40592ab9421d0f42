"""Triton kernels, one op per file; installed as ``vitsparse._triton`` and imported only by ``vitsparse.backends.triton``."""
