"""How codes are found, one method a file. Every solver has the signature `solve(weight, spec, stats) -> Encoded`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def solver_of(spec: Any) -> Callable[..., Any]:
    """The function that a spec names as its solver."""
    module, _, function = spec.solver.partition(":")
    return getattr(importlib.import_module(module), function)
