"""Changes of the block graph with a purpose: keep what was known, start from little, wait less, skip, stack models.

The blocks themselves are forms of `core.models.blocks`; here stands what is done with them.
"""
