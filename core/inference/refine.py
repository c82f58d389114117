"""Generate, verify, refine: one loop for everything whose output a program can check.

    loop = RefineLoop(generator, verifier, render, samples=4, rounds=5, strategy="beam")
    for event in loop.run(task):
        ...

A candidate is as good as the furthest stage it reached, and within a stage as its score. What is shown to the model
next is a function of the verdicts alone; a verifier's text is data and is never executed or formatted as a template.
Everything random comes from seed, round and index, and every step can be written to a trace, so that a run can be
resumed and replayed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from core.errors import BackendUnavailable, ConfigError, DataError
from core.inference.request import Request, SamplingParams

Strategy = Literal["repair", "best_of_n", "beam", "iterate_self"]
STRATEGIES: tuple[Strategy, ...] = ("repair", "best_of_n", "beam", "iterate_self")


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of a text.

    Args:
        stage: the furthest stage reached, one of the verifier's `stages`. passed: nothing is left to wish for.
        score: in [0, 1] within the stage. feedback: for the model, short and the same every time.
        metrics: figures to report. artifacts: what pictures are made of; not kept in traces. cost_s: seconds it took.
    """

    stage: str
    passed: bool
    score: float
    feedback: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
    cost_s: float = 0.0


class Verifier(Protocol):
    """Judges texts. `partial` asks for a process reward of an unfinished text, where the verifier can give one."""

    stages: tuple[str, ...]

    def verify(self, task: Any, text: str, *, partial: bool = False) -> Verdict: ...


@dataclass(frozen=True)
class Completions:
    """Texts of one prompt, with their ids and log-probabilities where the generator has them."""

    texts: list[str]
    ids: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float] | None] = field(default_factory=list)


class Generator(Protocol):
    """Draws `n` texts for each prompt."""

    def generate(self, prompts: Sequence[str], n: int, sampling: SamplingParams) -> list[Completions]: ...


class EngineGenerator:
    """A generator over an inference engine and its tokenizer (None for engines that read text)."""

    def __init__(self, engine: Any, tokenizer: Any = None) -> None:
        self.engine, self.tokenizer = engine, tokenizer

    def generate(self, prompts: Sequence[str], n: int, sampling: SamplingParams) -> list[Completions]:
        found = []
        for index, prompt in enumerate(prompts):
            ids = self.tokenizer(prompt)["input_ids"] if self.tokenizer is not None else []
            base = 0 if sampling.seed is None else sampling.seed
            outputs = [
                self.engine.generate([Request(ids, prompt)], replace(sampling, seed=base + 1009 * index + i))[0]
                for i in range(n)
            ]
            found.append(
                Completions([o.text for o in outputs], [o.ids for o in outputs], [o.logprobs for o in outputs])
            )
        return found


class ReplayGenerator:
    """Answers from a trace or a JSONL of {"prompt", "texts"}: tests and demos without a model.

    Raises:
        BackendUnavailable: a prompt that was not recorded.
    """

    def __init__(self, source: str | Path | Mapping[str, Sequence[str]]) -> None:
        self._texts: dict[str, list[str]] = {}
        if isinstance(source, Mapping):
            self._texts = {prompt: list(texts) for prompt, texts in source.items()}
            return
        for number, line in enumerate(Path(source).read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                if row.get("kind", "generated") == "generated":
                    self._texts.setdefault(row["prompt"], []).extend(row["texts"])
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                raise DataError("not a recorded generation", file=source, line=number, got=line) from error

    def generate(self, prompts: Sequence[str], n: int, sampling: SamplingParams) -> list[Completions]:
        found = []
        for prompt in prompts:
            if prompt not in self._texts:
                raise BackendUnavailable(
                    f"no recorded answer for {prompt[:80]!r}", hint="replay answers only what was recorded"
                )
            found.append(Completions(self._texts[prompt][:n]))
        return found


@dataclass(frozen=True)
class Budget:
    """What a run may spend; None is without limit. `tokens` counts generated tokens, by text length where unknown."""

    tokens: int | None = None
    wall_s: float | None = None
    verifies: int | None = None


@dataclass(frozen=True)
class Candidate:
    """A text with its verdict; `order` is better when greater."""

    text: str
    verdict: Verdict
    round: int
    order: tuple[int, float]


@dataclass(frozen=True)
class LoopEvent:
    """A step: kind is generated, verified, improved or finished."""

    kind: Literal["generated", "verified", "improved", "finished"]
    round: int
    prompt: str = ""
    texts: tuple[str, ...] = ()
    candidate: Candidate | None = None
    reason: str = ""
    known: bool = False

    def to_row(self) -> dict[str, Any]:
        """A line of the trace."""
        row: dict[str, Any] = {"kind": self.kind, "round": self.round}
        if self.kind == "generated":
            row |= {"prompt": self.prompt, "texts": list(self.texts)}
        elif self.candidate is not None:
            verdict = {k: v for k, v in asdict(self.candidate.verdict).items() if k not in ("artifacts", "cost_s")}
            row |= {"text": self.candidate.text, "verdict": verdict, "known": self.known}
        if self.reason:
            row["reason"] = self.reason
        return row


Render = Callable[[Any, Sequence[Candidate]], str]
"""A prompt from the task and the candidates to show, best first; none in the first round."""


class RefineLoop:
    """The loop.

    Args:
        generator, verifier: protocols of this module. render: makes prompts.
        samples: texts drawn in a round. rounds: at most. keep: candidates shown to the model.
        strategy: repair shows the last candidate; best_of_n never shows any; beam shows the best that pass and the
            best that do not; iterate_self shows the best so far.
        budget, patience: stop after this spending, or this many rounds without gain. target: stop at this score of
            the last stage (1.0: at the first pass).
        imap: runs verifications, e.g. `ExecPool.imap`; None runs them one by one.
        trace: JSONL file that every event is appended to.
    """

    def __init__(
        self,
        generator: Generator,
        verifier: Verifier,
        render: Render,
        *,
        samples: int = 4,
        rounds: int = 5,
        keep: int = 2,
        strategy: Strategy = "beam",
        budget: Budget | None = None,
        patience: int | None = None,
        target: float | None = 1.0,
        sampling: SamplingParams | None = None,
        seed: int = 0,
        imap: Callable[..., Iterator[Any]] | None = None,
        trace: str | Path | None = None,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ConfigError(f"unknown strategy '{strategy}'", hint=f"known: {', '.join(STRATEGIES)}")
        if min(samples, rounds, keep) < 1:
            raise ConfigError("samples, rounds and keep are at least 1", where="RefineLoop")
        self.generator, self.verifier, self.render = generator, verifier, render
        self.samples, self.rounds, self.keep, self.strategy = samples, rounds, keep, strategy
        self.budget, self.patience, self.target, self.seed = budget or Budget(), patience, target, seed
        self.sampling = sampling or SamplingParams(temperature=0.8, top_p=0.95)
        self.imap = imap or (lambda function, jobs: map(function, jobs))
        self.trace = Path(trace) if trace is not None else None

    def run(self, task: Any) -> Iterator[LoopEvent]:
        """Events until a stop; the last one is `finished` with the best candidate and the reason."""
        pool: dict[str, Candidate] = {}
        best: Candidate | None = None
        last: Candidate | None = None
        start, tokens, verifies, stale = time.perf_counter(), 0, 0, 0
        for number in range(self.rounds):
            if reason := self._spent(start, tokens, verifies):
                yield self._event("finished", number, candidate=best, reason=reason)
                return
            prompt = self.render(task, self._shown(pool, best, last))
            sampling = replace(self.sampling, seed=_seed(self.seed, number))
            (drawn,) = self.generator.generate([prompt], self.samples, sampling)
            tokens += sum(map(len, drawn.ids)) if any(drawn.ids) else sum(len(t) // 4 + 1 for t in drawn.texts)
            yield self._event("generated", number, prompt=prompt, texts=tuple(drawn.texts))
            fresh: list[str] = []
            for text in drawn.texts:
                if _normal(text) not in pool and all(_normal(text) != _normal(other) for other in fresh):
                    fresh.append(text)
            if self.budget.verifies is not None:
                fresh = fresh[: max(0, self.budget.verifies - verifies)]
            verdicts = dict(zip(fresh, self.imap(lambda text: self.verifier.verify(task, text), fresh)))
            improved = False
            for text in drawn.texts:
                known = _normal(text) in pool
                if not known:
                    if text not in verdicts:
                        continue
                    verdict = verdicts[text]
                    verifies += 1
                    pool[_normal(text)] = Candidate(text, verdict, number, self._order(verdict))
                last = pool[_normal(text)]
                yield self._event("verified", number, candidate=last, known=known)
                if best is None or last.order > best.order:
                    best, improved = last, True
                    yield self._event("improved", number, candidate=best)
            stale = 0 if improved else stale + 1
            if best is not None and self._reached(best):
                yield self._event("finished", number, candidate=best, reason="target reached")
                return
            if self.patience is not None and stale >= self.patience:
                yield self._event("finished", number, candidate=best, reason=f"{stale} rounds without gain")
                return
        yield self._event("finished", self.rounds - 1, candidate=best, reason="all rounds done")

    def solve(self, task: Any) -> Candidate | None:
        """The best candidate."""
        return list(self.run(task))[-1].candidate

    def _order(self, verdict: Verdict) -> tuple[int, float]:
        if verdict.stage not in self.verifier.stages:
            raise DataError(f"the verifier names a stage '{verdict.stage}'", expected=list(self.verifier.stages))
        return (self.verifier.stages.index(verdict.stage) + verdict.passed, verdict.score)

    def _reached(self, best: Candidate) -> bool:
        return self.target is not None and best.verdict.passed and best.verdict.score >= self.target

    def _shown(self, pool: Mapping[str, Candidate], best: Candidate | None, last: Candidate | None) -> list[Candidate]:
        if self.strategy == "best_of_n" or best is None or last is None:
            return []
        if self.strategy == "repair":
            return [last]
        if self.strategy == "iterate_self":
            return [best]
        ordered = sorted(pool.values(), key=lambda c: c.order, reverse=True)
        passed = [c for c in ordered if c.verdict.passed][: self.keep]
        failed = [c for c in ordered if not c.verdict.passed][: max(1, self.keep - len(passed))]
        return [*passed, *failed]

    def _spent(self, start: float, tokens: int, verifies: int) -> str:
        limits = self.budget
        if limits.tokens is not None and tokens >= limits.tokens:
            return "token budget spent"
        if limits.wall_s is not None and time.perf_counter() - start >= limits.wall_s:
            return "time budget spent"
        if limits.verifies is not None and verifies >= limits.verifies:
            return "verification budget spent"
        return ""

    def _event(self, kind: Any, number: int, **more: Any) -> LoopEvent:
        event = LoopEvent(kind, number, **more)
        if self.trace is not None:
            self.trace.parent.mkdir(parents=True, exist_ok=True)
            with open(self.trace, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(event.to_row(), ensure_ascii=False, default=str) + "\n")
        return event


def _normal(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "little")
