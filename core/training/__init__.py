"""Training: a recipe's stages on transformers' Trainer, and what they leave in the run folder."""
