"""An engine that runs the code a model writes, and lets it go on behind the result.

    engine = CodeEngine(PrefixEngine(model, tokenizer), CodeRunner())

Generation stops where a piece of code is closed; the code runs, its result is appended as ids of its own piece, and the
model continues. On a `PrefixEngine` the keys and values of everything before stay where they are, so a text with calls
costs what one pass over it costs.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

from apps.tool_use.interleaved import CLOSE, ENDED, OPEN, RESULT
from core.inference.request import Event, Output, Request, SamplingParams


class CodeEngine:
    """Wraps an engine.

    Args:
        inner: what generates. runner: what runs code, see `bridge.CodeRunner`; None makes one with the first code.
        most: runs of a text at most; behind the last one the model ends without further runs. timeout_s: of a run.
    """

    def __init__(self, inner: Any, runner: Any = None, most: int = 8, timeout_s: float = 5.0) -> None:
        self.inner, self.runner, self.most, self.timeout_s = inner, runner, most, timeout_s
        self.runs = 0

    def __getattr__(self, name: str) -> Any:
        """Model, tokenizer, context, scores: those of the inner engine."""
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[Output]:
        """One output a request: its text holds code and results; ids are those of the whole answer."""
        return [self._answer(request, sampling, None) for request in requests]

    def stream(self, request: Request, sampling: SamplingParams) -> Iterator[Event]:
        """Text from one run of code to the next as one event, then the `done` event."""
        start, shown = time.perf_counter(), list[str]()
        output = self._answer(request, sampling, shown)
        for text in shown:
            yield Event("text", text, (time.perf_counter() - start) * 1e3)
        yield Event("done", output.text, (time.perf_counter() - start) * 1e3, len(output.ids), output)

    def _answer(self, request: Request, sampling: SamplingParams, shown: list[str] | None) -> Output:
        ids, text, runs = list(request.ids), "", 0
        if self.runner is not None:
            self.runner.forget()
        while True:
            left = sampling.max_new_tokens - (len(ids) - len(request.ids))
            stops = (*request.stop, *((CLOSE,) if runs < self.most else ()))
            asked = dataclasses.replace(request, ids=ids, stop=stops)
            (made,) = self.inner.generate([asked], sampling.updated({"max_new_tokens": left}))
            ids, text = [*ids, *made.ids], text + made.text
            code = self._code(made, text) if runs < self.most else None
            if code is None:
                break
            runs += 1
            piece = f"{RESULT}{self._run(code)}{ENDED}"
            text += f"{CLOSE}{piece}"
            ids += self.inner.tokenizer(piece, add_special_tokens=False)["input_ids"]
            if len(ids) - len(request.ids) >= sampling.max_new_tokens or self._full(ids):
                made = dataclasses.replace(made, finish_reason="length")
                break
        if shown is not None and text:
            shown.append(text)
        self.runs += runs
        return Output(ids[len(request.ids) :], text, None, made.finish_reason)

    def _code(self, made: Output, text: str) -> str | None:
        """The code that the model has just closed; None when it ended otherwise."""
        closed = made.finish_reason == "stop" and CLOSE in self.inner.tokenizer.decode(made.ids)
        return text.rpartition(OPEN)[2] if closed and OPEN in text else None

    def _run(self, code: str) -> str:
        if self.runner is None:
            from apps.tool_use.bridge import CodeRunner

            self.runner = CodeRunner(self.timeout_s)
        return self.runner.run(code)[0]

    def _full(self, ids: Sequence[int]) -> bool:
        context = self.inner.context
        return context is not None and len(ids) >= context

    def close(self) -> None:
        if self.runner is not None:
            self.runner.close()
        self.inner.close()
