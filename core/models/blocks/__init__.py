"""Forms that a block can take after surgery, one op a file.

Each op is a function `(model, **args)` that checks everything first and then changes the structure, so that a refused
op leaves the model as it was; it must also work on the meta device, where there are shapes and no values.
"""
