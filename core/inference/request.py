"""What goes into an engine and what comes out of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from core.config.schema import key
from core.config.typed import Places, build
from core.data.segments import Segment


@dataclass(frozen=True)
class SamplingParams:
    """How to generate. `updated` keeps to the bounds."""

    max_new_tokens: int = key(256, "most new tokens of an output", least=1)
    beams: int = key(1, "beams of a search; 1 is none", least=1)
    length_penalty: float = key(1.0, "power of the length that divides a beam's score")
    temperature: float = key(0.0, "of sampling; 0 is greedy (or beam) search", least=0)
    top_p: float = key(1.0, "sample from the likeliest tokens of this joint probability", above=0, most=1)
    top_k: int = key(0, "sample from so many of the likeliest tokens; 0 is all", least=0)
    seed: int | None = key(None, "the same input in the same batch gives the same output; without one, a new draw")
    stop: tuple[str, ...] = key((), "strings that end an output and are not part of it")
    logprobs: bool = key(False, "also give the log-probability of every new token")

    def updated(self, values: dict[str, Any]) -> SamplingParams:
        """A copy with `values` laid over it; unknown names and values that cannot be are a `ConfigError`."""
        merged = {**dataclasses.asdict(self), **values}
        merged["stop"] = list(merged["stop"])
        return build(SamplingParams, merged, Places("sampling"))


@dataclass(frozen=True)
class Request:
    """A prompt as ids (T,), with the text and segments it came from.

    Args:
        constraint: a form that the output must have, as `core.inference.constrained.JsonConstraint`; it then ends
            itself, and stop strings do not count.
    """

    ids: list[int]
    text: str = ""
    segments: tuple[Segment, ...] = ()
    stop: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    constraint: Any = None


@dataclass(frozen=True)
class Output:
    """What an engine made.

    Args:
        ids: new ids without the prompt and without the end of text; up to and with the tokens of a stop string.
        text: their text before the stop string.
        logprobs: one of each id, in nats, when the sampling asks for them and there is no beam search.
        finish_reason: "stop" for an end of text or a stop string, else "length".
    """

    ids: list[int]
    text: str
    logprobs: list[float] | None = None
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Result:
    """What a pipeline returns: the text, what happened (prompt, tokens, warnings), and times in milliseconds."""

    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Event:
    """A step of a stream: kind is text or done; `text` is what was added, `t_ms` since the start.

    `result` of the done event is an `Output` from an engine, a `Result` from a pipeline.
    """

    kind: str
    text: str = ""
    t_ms: float = 0.0
    tokens: int = 0
    result: Result | Output | None = None
