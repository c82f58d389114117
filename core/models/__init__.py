"""The base model: loading it, building it from a preset, and finding one's way inside it."""
