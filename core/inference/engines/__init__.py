"""Generators by name. An engine answers requests; it knows ids and sampling, and nothing of apps or prompts."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from core.errors import ConfigError, nearest
from core.inference.request import Event, Output, Request, SamplingParams

ENGINES = {
    "hf": "core.inference.engines.hf:HfEngine",
    "replay": "core.inference.engines.replay:ReplayEngine",
    "script": "core.inference.engines.script:ScriptEngine",
    "tiny": "core.inference.engines.tiny:TinyEngine",
}


class Engine(Protocol):
    """What a pipeline asks of a generator."""

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[Output]: ...

    def stream(self, request: Request, sampling: SamplingParams) -> Iterator[Event]: ...

    def score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]: ...

    def capabilities(self) -> set[str]: ...

    def close(self) -> None: ...


def engine_class(name: str) -> Any:
    """The class of an engine, or a `ConfigError` with the nearest name."""
    if name not in ENGINES:
        hint = " ".join(filter(None, [nearest(name, ENGINES), f"known: {', '.join(ENGINES)}"]))
        raise ConfigError(f"unknown engine '{name}'", hint=hint)
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
