"""Training methods of the CUDA app."""
