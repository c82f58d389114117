"""Generation that can only give text of a wanted form: JSON, or Python calls, that a JSON Schema accepts.

A schema becomes a finite automaton over bytes (`json_schema`, `automaton`), a tokenizer's vocabulary becomes a trie of
bytes (`vocabulary`), and the two together say at each step which tokens keep the text on a way to its end (`masks`,
`constraint`). JSON of bounded nesting is a regular language, which is why no stack is needed (Willard and Louf 2023,
"Efficient guided generation for large language models").
"""

from __future__ import annotations

import importlib
from typing import Any

_ROOMS = {"JsonConstraint": "constraint", "ConstrainedLogits": "constraint", "compile_schema": "json_schema"}
__all__ = ["ConstrainedLogits", "JsonConstraint", "compile_schema"]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'core.inference.constrained' has no attribute '{name}'")
    return getattr(importlib.import_module(f"core.inference.constrained.{_ROOMS[name]}"), name)
