"""Several answers to one prompt, and the choice among them.

Best of n takes the best verdict, self-consistency the most frequent answer; a beam grows answers step by step and keeps
those whose unfinished text a process reward likes; mixed does that for the first part and leaves the end to the
outcome. Every function returns a trace of what was drawn and what it cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from core.errors import ConfigError
from core.inference.refine import Generator, Verdict, Verifier
from core.inference.request import SamplingParams


@dataclass
class Trace:
    """What a search drew.

    Args:
        candidates: finished texts. scores: of each, by stage and score of its verdict. best: index of the choice.
        tokens: generated, also those of dropped beams. verifies: calls of the verifier.
    """

    candidates: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    tokens: int = 0
    verifies: int = 0
    best: int | None = None

    @property
    def answer(self) -> str:
        """The chosen text; "" when nothing was drawn."""
        return "" if self.best is None else self.candidates[self.best]


Step = Callable[[str], bool]
"""Whether an unfinished text is in fact finished."""


def verdict_score(verifier: Verifier, verdict: Verdict) -> float:
    """Stage and score as one number: a later stage is always better."""
    return verifier.stages.index(verdict.stage) + verdict.passed + min(verdict.score, 1 - 1e-9)


def best_of_n(
    generator: Generator, verifier: Verifier, task: Any, prompt: str, n: int, sampling: SamplingParams | None = None
) -> Trace:
    """Draw `n` texts and choose the one with the best verdict; the first of equals.

    Raises:
        ConfigError: n is not positive.
    """
    trace = _drawn(generator, prompt, n, sampling)
    known: dict[str, Verdict] = {}
    for text in trace.candidates:
        if text not in known:
            known[text] = verifier.verify(task, text)
            trace.verifies += 1
        trace.verdicts.append(known[text])
        trace.scores.append(verdict_score(verifier, known[text]))
    trace.best = max(range(n), key=lambda i: (trace.scores[i], -i))
    return trace


def self_consistency(
    generator: Generator, prompt: str, n: int, answer: Callable[[str], Any] = str.strip,
    sampling: SamplingParams | None = None,
) -> Trace:  # fmt: skip
    """Draw `n` texts and choose the first whose answer is the most frequent (Wang et al. 2023); None does not vote."""
    trace = _drawn(generator, prompt, n, sampling)
    answers = [answer(text) for text in trace.candidates]
    votes = Counter(a for a in answers if a is not None)
    trace.scores = [votes[a] / n if a is not None else 0.0 for a in answers]
    if votes:
        trace.best = max(range(n), key=lambda i: (trace.scores[i], -i))
    return trace


def beam_search(
    generator: Generator,
    verifier: Verifier,
    task: Any,
    prompt: str,
    *,
    beams: int = 4,
    branches: int = 4,
    step_tokens: int = 32,
    max_steps: int = 16,
    finished: Step | None = None,
    sampling: SamplingParams | None = None,
    process_steps: int | None = None,
) -> Trace:
    """Grow texts by `step_tokens` at a time; of `beams` × `branches` keep the `beams` with the best process reward.

    Args:
        finished: tells a finished text; by default one that a step did not lengthen.
        process_steps: steps that are pruned; after them every beam goes on alone. None prunes all.

    Raises:
        ConfigError: a count that is not positive.
    """
    if min(beams, branches, step_tokens, max_steps) < 1:
        raise ConfigError("beams, branches, step_tokens and max_steps are at least 1", where="beam_search")
    base = replace(sampling or SamplingParams(temperature=0.8, top_p=0.95), max_new_tokens=step_tokens)
    trace, alive, done = Trace(), [""], []
    for step in range(max_steps):
        pruned = process_steps is None or step < process_steps
        width = branches if pruned else 1
        seeds = (base.seed or 0) + 7919 * step
        drawn = generator.generate([prompt + text for text in alive], width, replace(base, seed=seeds))
        grown: dict[str, bool] = {}
        for text, completions in zip(alive, drawn):
            for added in completions.texts:
                trace.tokens += _length(completions, added)
                whole = text + added
                grown[whole] = grown.get(whole, False) or not added or (finished(whole) if finished else False)
        done += [text for text, ended in grown.items() if ended and text not in done]
        rest = [text for text, ended in grown.items() if not ended]
        if pruned and len(rest) > beams:
            rewards = {text: verifier.verify(task, text, partial=True).score for text in rest}
            trace.verifies += len(rest)
            rest = sorted(rest, key=lambda text: -rewards[text])[:beams]
        alive = rest[: max(0, beams - len(done))] if pruned else rest
        if not alive:
            break
    for text in done or alive:
        verdict = verifier.verify(task, text)
        trace.verifies += 1
        trace.candidates.append(text)
        trace.verdicts.append(verdict)
        trace.scores.append(verdict_score(verifier, verdict))
    if trace.candidates:
        trace.best = max(range(len(trace.candidates)), key=lambda i: (trace.scores[i], -i))
    return trace


def mixed(
    generator: Generator, verifier: Verifier, task: Any, prompt: str, *, process_steps: int, **options: Any
) -> Trace:
    """Process reward for the first `process_steps` steps, then every beam to its end, chosen by outcome."""
    return beam_search(generator, verifier, task, prompt, process_steps=process_steps, **options)


def _drawn(generator: Generator, prompt: str, n: int, sampling: SamplingParams | None) -> Trace:
    if n < 1:
        raise ConfigError(f"n is {n}", hint="draw at least one text")
    (completions,) = generator.generate([prompt], n, sampling or SamplingParams(temperature=0.8, top_p=0.95))
    tokens = sum(_length(completions, text) for text in completions.texts)
    return Trace(list(completions.texts), tokens=tokens)


def _length(completions: Any, text: str) -> int:
    """Tokens of a text; by its length where the generator gives no ids."""
    if any(completions.ids):
        return len(completions.ids[completions.texts.index(text)])
    return len(text) // 4 + bool(text)
