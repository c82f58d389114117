"""What runs calls: trusted functions, code in the sandbox, HTTP, a recording, or a model that plays the tool.

    with Sandboxed(source, tools) as executor:
        executor.run(Call("area", {"width": 2, "height": 3})).text     # "6"

Whatever goes wrong in a tool is an observation with a status, for the model to read; only a misuse of ours raises.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.tool_use.executors.http import Http
    from apps.tool_use.executors.local import Local
    from apps.tool_use.executors.observation import Executor, Observation
    from apps.tool_use.executors.replay import Recording, Replay
    from apps.tool_use.executors.sandboxed import Sandboxed
    from apps.tool_use.executors.simulated import Simulated

__all__ = ["Executor", "Http", "Local", "Observation", "Recording", "Replay", "Sandboxed", "Simulated"]

_ROOMS = {
    "Executor": "observation", "Http": "http", "Local": "local", "Observation": "observation", "Recording": "replay",
    "Replay": "replay", "Sandboxed": "sandboxed", "Simulated": "simulated",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'apps.tool_use.executors' has no attribute '{name}'")
    return getattr(importlib.import_module(f"apps.tool_use.executors.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
