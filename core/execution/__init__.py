"""Untrusted code runs here and nowhere else: a sandbox, the tools it may need, a cache and a pool.

    box = Sandbox.best(Policy(wall_s=10))
    done = box.run([Step(["vvp", "-n", "s.vvp"])], files={"s.vvp": code}, collect=["wave.vcd"])

Everything is loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.execution.cache import ExecCache
    from core.execution.policy import ExecResult, Policy, Step, StepResult
    from core.execution.pool import ExecPool
    from core.execution.sandbox import Probe, Sandbox
    from core.execution.tools import Tool, ToolMissing, tool
    from core.execution.worker import Answer, Worker

__all__ = [
    "Answer", "ExecCache", "ExecPool", "ExecResult", "Policy", "Probe", "Sandbox", "Step", "StepResult", "Tool",
    "ToolMissing", "Worker", "tool",
]  # fmt: skip

_ROOMS = {
    "policy": ("Policy", "Step", "StepResult", "ExecResult"),
    "sandbox": ("Sandbox", "Probe"),
    "worker": ("Worker", "Answer"),
    "tools": ("Tool", "ToolMissing", "tool"),
    "cache": ("ExecCache",),
    "pool": ("ExecPool",),
}


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(importlib.import_module(f"core.execution.{room}"), name)
    raise AttributeError(f"module 'core.execution' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
