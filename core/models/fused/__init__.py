"""Fused norms, rotary phases, gated products and losses: a Triton kernel each, with a plain twin beside it."""
