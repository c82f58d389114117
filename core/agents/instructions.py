"""The program of an agent: instructions in order, fixed once the first one has begun."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from core.config.files import read_json, write_json
from core.errors import ConfigError, DataError


class InstructionRegistry:
    """Ordered instructions. `start` makes them immutable; `save` and `load` keep them as JSON.

    Raises:
        ConfigError: no instruction, or an empty one.
    """

    def __init__(self, instructions: Sequence[str]) -> None:
        self._instructions = [text.strip() for text in instructions]
        self._started = False
        if not self._instructions or not all(self._instructions):
            raise ConfigError("instructions are missing or empty", where="InstructionRegistry")

    @classmethod
    def from_plan(cls, text: str) -> InstructionRegistry:
        """The instructions in a model's plan: a JSON list, or numbered lines.

        Raises:
            DataError: neither is there.
        """
        start, end = text.find("["), text.rfind("]")
        if 0 <= start < end:
            try:
                found = json.loads(text[start : end + 1])
                if isinstance(found, list) and found and all(isinstance(x, str) and x.strip() for x in found):
                    return cls(found)
            except json.JSONDecodeError:
                pass
        lines = re.findall(r"^\s*\d+[.)]\s+(.+)$", text, re.MULTILINE)
        if not lines:
            raise DataError("no instructions in the plan", got=text, expected="a JSON list or numbered lines")
        return cls(lines)

    def __len__(self) -> int:
        return len(self._instructions)

    def __getitem__(self, index: int) -> str:
        return self._instructions[index]

    def start(self) -> None:
        """From now on nothing changes."""
        self._started = True

    def insert(self, index: int, text: str) -> None:
        """Add an instruction. Raises `ConfigError` after the start."""
        if self._started:
            raise ConfigError("the program has started and cannot be changed", hint="plan before the first step")
        if not text.strip():
            raise ConfigError("the instruction is empty", where="InstructionRegistry")
        self._instructions.insert(index, text.strip())

    def save(self, path: str | Path) -> None:
        write_json(path, {"instructions": self._instructions, "started": self._started})

    @classmethod
    def load(cls, path: str | Path) -> InstructionRegistry:
        """Read what `save` wrote."""
        found = read_json(path)
        try:
            made = cls(found["instructions"])
            made._started = bool(found["started"])
        except (KeyError, TypeError) as error:
            raise DataError(f"not a saved program: {error}", file=path) from error
        return made
