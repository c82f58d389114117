"""Long outputs from a short context: instructions run one by one over a store of files (L2MAC, Holt et al. 2024).

    unit = ControlUnit(model, registry, FileStore(folder), PythonEvaluator(), task="…", context=4096)
    result = unit.run()

`instructions` holds the program, `files` what was written, `evaluate` checks every step in the sandbox, `control` keeps
the context within its bounds and everything on disk, so that a killed run goes on where it was. `program` reads tasks
from files, `models` answers; `graft l2mac` is the door to all of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.agents.control import AgentResult, ControlUnit, Message
    from core.agents.evaluate import CommandEvaluator, PythonEvaluator, StepReport, TextEvaluator
    from core.agents.files import FileStore
    from core.agents.instructions import InstructionRegistry
    from core.agents.models import EngineModel, Recorded, planned
    from core.agents.program import Program, evaluator_of, load_program

_ROOMS = {
    "control": ("AgentResult", "ControlUnit", "Message"),
    "evaluate": ("CommandEvaluator", "PythonEvaluator", "StepReport", "TextEvaluator"),
    "files": ("FileStore",),
    "instructions": ("InstructionRegistry",),
    "models": ("EngineModel", "Recorded", "planned"),
    "program": ("Program", "evaluator_of", "load_program"),
}
__all__ = [
    "AgentResult", "CommandEvaluator", "ControlUnit", "EngineModel", "FileStore", "InstructionRegistry", "Message",
    "Program", "PythonEvaluator", "Recorded", "StepReport", "TextEvaluator", "evaluator_of", "load_program", "planned",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(importlib.import_module(f"core.agents.{room}"), name)
    raise AttributeError(f"module 'core.agents' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
