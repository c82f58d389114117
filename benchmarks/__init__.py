"""Bars: figures that the project promises, each one a command.

`python -m benchmarks ls` lists them, `python -m benchmarks run ID` measures one. They live in the checkout only and are
never installed. A bar is one small file in `bars/`; it knows the packages it measures and nothing of the runner.
"""
