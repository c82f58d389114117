"""Trainable additions to a frozen model, each a tuner that peft knows by name once this package is imported."""
