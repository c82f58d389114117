"""Spending compute at inference: draw and choose, search by partial rewards, and share a budget among stages.

    trace = best_of_n(generator, verifier, task, prompt, n=16)
    result = search(environment, RuleAgent(space), budget=1e6)

`samplers` works on one prompt, `budget` prices what was drawn, `multi_stage` decides which model answers how often in
each stage of a pipeline (after Wang et al. 2025, AgentTTS), and `live` runs it. Verdicts come from
`core.inference.refine`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.inference.search.agents import GridAgent, HillClimbAgent, LLMAgent, RandomAgent, RuleAgent, TpeAgent
    from core.inference.search.budget import CallCost, Spending
    from core.inference.search.live import LiveEnvironment
    from core.inference.search.multi_stage import Allocation, Archive, Stage, TaskGraph, search
    from core.inference.search.samplers import Trace, beam_search, best_of_n, mixed, self_consistency

_ROOMS = {
    "samplers": ("Trace", "beam_search", "best_of_n", "mixed", "self_consistency"),
    "budget": ("CallCost", "Spending"),
    "multi_stage": ("Allocation", "Archive", "Stage", "TaskGraph", "search"),
    "live": ("LiveEnvironment",),
    "agents": ("GridAgent", "HillClimbAgent", "LLMAgent", "RandomAgent", "RuleAgent", "TpeAgent"),
}
__all__ = [
    "Allocation", "Archive", "CallCost", "GridAgent", "HillClimbAgent", "LLMAgent", "LiveEnvironment", "RandomAgent",
    "RuleAgent", "Spending", "Stage", "TaskGraph", "TpeAgent", "Trace", "beam_search", "best_of_n", "mixed", "search",
    "self_consistency",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(importlib.import_module(f"core.inference.search.{room}"), name)
    raise AttributeError(f"module 'core.inference.search' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
