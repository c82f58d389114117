"""A task for an agent as a file, and a run of it as a folder.

The YAML says what the task is, which instructions lead there (none: the model plans), and which check every step must
pass. The folder holds the plan, the state after every turn and the files; the same command on it goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.agents.control import AgentResult, ControlUnit, Model
from core.agents.evaluate import CommandEvaluator, Evaluator, PythonEvaluator, TextEvaluator
from core.agents.files import FileStore
from core.agents.instructions import InstructionRegistry
from core.agents.models import planned
from core.config.files import read_json, write_json
from core.config.load import parse_yaml
from core.config.typed import build
from core.errors import ConfigError, nearest

CHECKS: dict[str, Callable[..., Evaluator]] = {
    "python": PythonEvaluator,
    "commands": CommandEvaluator,
    "text": TextEvaluator,
}


@dataclass(frozen=True)
class Program:
    """What an agent is to do.

    Args:
        task: in words. instructions: in order; without any the model makes them. check: name of what judges every
            step. with_: its arguments. files: path → content, there before the first step.
    """

    task: str
    instructions: list[str] = field(default_factory=list)
    check: str = "python"
    with_: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def load_program(path: str | Path) -> Program:
    """Read a program. Raises `ConfigError` with file and line for every mistake in it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the program cannot be read: {error}", where=str(path)) from error
    raw, places = parse_yaml(text, str(path))
    program = build(Program, raw, places)
    if not program.task.strip():
        raise ConfigError("the task is empty", where=places.of(("task",)))
    return program


def evaluator_of(program: Program, checks: Mapping[str, Callable[..., Evaluator]] = CHECKS) -> Evaluator:
    """The check that a program names. Raises `ConfigError` for an unknown one, or wrong arguments."""
    if program.check not in checks:
        hint = nearest(program.check, checks) or f"known: {', '.join(checks)}"
        raise ConfigError(f"unknown check '{program.check}'", where="check", hint=hint)
    try:
        return checks[program.check](**program.with_)
    except TypeError as error:
        raise ConfigError(f"the check '{program.check}' cannot be made: {error}", where="with") from error


def start(program: Program, model: Model, evaluator: Evaluator, folder: str | Path, **options: Any) -> ControlUnit:
    """A control unit on a folder: new, or as it was when its run ended.

    Args:
        options: of `ControlUnit`, as its context.

    Raises:
        ConfigError: the folder is of another program.
    """
    folder = Path(folder)
    plan, note = folder / "plan.json", folder / "program.json"
    mark = hashlib.sha256(json.dumps(asdict(program), sort_keys=True).encode()).hexdigest()
    if note.is_file() and read_json(note).get("sha256") != mark:
        raise ConfigError(
            "this folder holds a run of another program, or of an earlier form of this one", where=str(folder),
            hint="give another --out, or remove the folder",
        )  # fmt: skip
    if plan.is_file():
        registry = InstructionRegistry.load(plan)
    else:
        registry = InstructionRegistry(program.instructions) if program.instructions else planned(model, program.task)
        registry.save(plan)
    write_json(note, {"sha256": mark, **asdict(program)})
    store = FileStore(folder / "store")
    if not (folder / "state.json").is_file() and len(store) == 0:
        for path, content in program.files.items():
            store.write(path, content)
    return ControlUnit(model, registry, store, evaluator, task=program.task, folder=folder, **options)


def finish(result: AgentResult, folder: str | Path) -> None:
    """Write how a run ended beside its files."""
    write_json(Path(folder) / "result.json", {k: v for k, v in asdict(result).items() if k != "files"})
