"""Recipes as typed data: the schema, the loader that rejects every bad key with its place, and the run folder."""
