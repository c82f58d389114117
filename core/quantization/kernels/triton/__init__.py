"""Kernels in Triton, for NVIDIA GPUs; importing the package needs no Triton."""
