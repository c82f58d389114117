"""Answers from a file: demos and tests without weights, and traces that anybody can replay.

Each line of the JSONL holds `key` (hash of the prompt's text and the sampling), `prompt`, and `text`; a last line
without an end, as a killed recorder leaves it, does not count. A prompt that was
not recorded is an error, never an invention. With `recorder`, another engine answers and the answers are appended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from core.config.files import write_text
from core.errors import BackendUnavailable, DataError
from core.inference.request import Event, Output, Request, SamplingParams


def request_key(request: Request, sampling: SamplingParams) -> str:
    """Hash of what decides the answer."""
    canonical = json.dumps([request.text, dataclasses.asdict(sampling)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:24]


class ReplayEngine:
    """Reads `path`; with a `recorder` engine also writes to it."""

    def __init__(self, path: str | Path, recorder: Any = None) -> None:
        self.path, self.recorder, self._lock = Path(path), recorder, threading.Lock()
        self.answers: dict[str, str] = {}
        if not self.path.exists() and recorder is None:
            raise BackendUnavailable("the recording does not exist", where=str(path))
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").split("\n")
            for number, line in enumerate(lines[:-1], 1):
                try:
                    row = json.loads(line)
                    self.answers[row["key"]] = row["text"]
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise DataError("not a recorded answer", file=self.path, line=number, got=line) from error
            if lines[-1] and recorder is not None:
                # a recorder that was killed leaves half a line without an end; it is recorded anew
                write_text(self.path, "".join(line + "\n" for line in lines[:-1]))

    def capabilities(self) -> set[str]:
        return {"generate", "stream"}

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[Output]:
        missing = [r for r in requests if request_key(r, sampling) not in self.answers]
        if missing and self.recorder is None:
            raise BackendUnavailable(
                f"no recorded answer for {missing[0].text[:80]!r}",
                where=str(self.path),
                hint="replay answers only what was recorded; load a model to ask anything else",
            )
        if missing:
            with self._lock, open(self.path, "a", encoding="utf-8") as handle:
                for request, output in zip(missing, self.recorder.generate(missing, sampling)):
                    key = request_key(request, sampling)
                    self.answers[key] = output.text
                    row = {"key": key, "prompt": request.text, "text": output.text}
                    handle.write(json.dumps(row, ensure_ascii=False) + "\n")
        return [Output([], self.answers[request_key(r, sampling)]) for r in requests]

    def stream(self, request: Request, sampling: SamplingParams) -> Iterator[Event]:
        (output,) = self.generate([request], sampling)
        yield Event("text", output.text)
        yield Event("done", output.text, result=output)

    def score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        raise BackendUnavailable("a recording has no probabilities", hint="use engine='hf'")

    def close(self) -> None:
        """Nothing to give back."""
