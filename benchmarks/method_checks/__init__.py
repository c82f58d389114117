"""Exact statements about the methods, each `() -> (distance from exactness, what is allowed)`, one file a package.

A file holds `CHECKS`, name → function. They run on a CPU in seconds, on tiny random models.
"""
