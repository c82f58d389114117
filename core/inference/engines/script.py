"""A function plays the model: for tests of what surrounds one, and for rules as a baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from core.errors import BackendUnavailable
from core.inference.request import Event, Output, Request, SamplingParams


class ScriptEngine:
    """Answers every request with `answer(prompt text) -> text`."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer

    def capabilities(self) -> set[str]:
        return {"generate", "stream"}

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[Output]:
        return [Output([], self.answer(r.text)) for r in requests]

    def stream(self, request: Request, sampling: SamplingParams) -> Iterator[Event]:
        text = self.answer(request.text)
        for word in text.splitlines(keepends=True):
            yield Event("text", word)
        yield Event("done", text, result=Output([], text))

    def score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        raise BackendUnavailable("this engine has no probabilities", hint="use engine='hf'")

    def close(self) -> None:
        """Nothing to give back."""
