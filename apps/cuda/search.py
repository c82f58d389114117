"""Feature search (Chen et al. 2025, CUDA-LLM): candidates are compiled, checked and timed, round after round.

In each round the model sees the device, the best right kernel with its time and resources, and one that fails with its
first errors. A kernel replaces the best only when it is faster by more than the intervals of both times. A scripted
generator that turns the knobs of a kernel takes the place of a model where the search itself is measured.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apps.cuda import prompts
from apps.cuda.example import CudaExample
from apps.cuda.harness import CudaHarness
from apps.cuda.source import extract
from apps.cuda.timing import faster
from apps.cuda.verifier import CudaVerifier
from core.data.segments import prompt_segments, render
from core.inference.refine import Budget, Candidate, Completions, Generator, RefineLoop
from core.inference.request import SamplingParams


def search_loop(
    generator: Generator, harness: CudaHarness, *, samples: int = 5, rounds: int = 10, patience: int | None = None,
    sampling: SamplingParams | None = None, seed: int = 0, first: str = "search", budget: Budget | None = None,
    fits: Callable[[str], str] = lambda prompt: prompt, trace: Any = None,
) -> RefineLoop:  # fmt: skip
    """The loop over one operator.

    Args:
        first: template of the first round; later rounds take "search". budget: of tokens, seconds or verifications.
        fits: is given every prompt, and raises for one that is too long.
    """

    def show(task: CudaExample, candidates: Sequence[Candidate]) -> str:
        right = fastest([c for c in candidates if c.verdict.passed])
        wrong = next((c for c in candidates if not c.verdict.passed), None)
        template = prompts.get_template("search" if candidates else first)
        values = prompts.fields(
            task, right.text if right else "none yet",
            "\n".join(filter(None, [right.verdict.feedback if right else "", wrong.verdict.feedback if wrong else ""])),
            wrong.text if wrong else "none", facts(harness),
        )  # fmt: skip
        return fits("".join(s.text for s in prompt_segments(render(template, values))))

    return RefineLoop(
        generator, CudaVerifier(harness), show, samples=samples, rounds=rounds, keep=2, strategy="beam", target=None,
        patience=patience, sampling=sampling or SamplingParams(1024, temperature=0.8, top_p=0.95), seed=seed,
        budget=budget, trace=trace,
    )  # fmt: skip


def fastest(candidates: Sequence[Candidate]) -> Candidate | None:
    """The first right candidate, replaced by each that is faster by more than the intervals; else the furthest one."""
    best: Candidate | None = None
    for candidate in candidates:
        if not candidate.verdict.passed:
            continue
        found = candidate.verdict.artifacts["verdict"].timing
        if best is None or (found is not None and faster(found, best.verdict.artifacts["verdict"].timing)):
            best = candidate
    return best or max(candidates, key=lambda c: c.order, default=None)


def facts(harness: CudaHarness) -> str:
    """The device in one line."""
    from apps.cuda.model import LIMITS

    if harness._device is not None:
        return harness._device.described
    arch = harness.archs[0] if harness.archs else "sm_90"
    limits = LIMITS.get(arch.rstrip("a"), LIMITS["sm_90"])
    return (
        f"{arch}: {limits.sms} SMs of {limits.warps} warps, {limits.registers} registers and "
        f"{limits.shared // 1024} KiB of shared memory; {limits.bandwidth / 1e12:.1f} TB/s"
    )


def knobs(text: str) -> dict[str, int]:
    """The numbers of a candidate that may be turned: names that its plan sizes and its code defines with one value."""
    code, plan = extract(text)
    found = {}
    for name, value in re.findall(r'"(\w+)":\s*"?(\d+)"?(?=\s*[,}])', plan):
        if re.search(rf"^#define {name} {value}$", code, re.M):
            found[name] = int(value)
    return found


def turned(text: str, changes: Mapping[str, int]) -> str:
    """The candidate with other values of its knobs, in plan and code."""
    for name, value in changes.items():
        text = re.sub(rf'("{name}":\s*"?)\d+', rf"\g<1>{value}", text)
        text = re.sub(rf"^(#define {name} )\d+$", rf"\g<1>{value}", text, flags=re.M)
    return text


class KnobGenerator:
    """Plays the model: draws from recorded candidates first, then turns the knobs of the best one it is shown.

    Args:
        seeds: candidates of the first rounds. space: the values that each knob may take, in order.
    """

    def __init__(self, seeds: Sequence[str], space: Mapping[str, Sequence[int]], seed: int = 0) -> None:
        self.seeds, self.space, self.draw = list(seeds), dict(space), random.Random(seed)
        self.said: set[str] = set()

    def generate(self, prompts: Sequence[str], n: int, sampling: SamplingParams) -> list[Completions]:
        return [Completions([self._next(prompt) for _ in range(n)]) for prompt in prompts]

    def _next(self, prompt: str) -> str:
        shown = re.search(r"The best so far:\n(.*?)\n(?:It is right|Verdict:|\n)", prompt, re.S)
        base = shown[1] if shown and "__global__" in shown[1] else None
        if base is None:
            return self._unsaid(lambda: turned(self.draw.choice(self.seeds), self._anywhere()))
        return self._unsaid(lambda: turned(base, self._near(knobs(base))))

    def _unsaid(self, make: Callable[[], str]) -> str:
        text = make()
        for _ in range(50):
            if text not in self.said:
                break
            text = make()
        self.said.add(text)
        return text

    def _anywhere(self) -> dict[str, int]:
        return {name: self.draw.choice(list(values)) for name, values in self.space.items()}

    def _near(self, now: Mapping[str, int]) -> dict[str, int]:
        """One or two knobs a step up or down; seldom, anywhere."""
        if self.draw.random() < 0.15:
            return self._anywhere()
        chosen = self.draw.sample(sorted(self.space), k=min(len(self.space), self.draw.choice((1, 1, 2))))
        moved = {}
        for name in chosen:
            values = list(self.space[name])
            at = values.index(now[name]) if now.get(name) in values else 0
            moved[name] = values[min(len(values) - 1, max(0, at + self.draw.choice((-2, -1, 1, 2))))]
        return moved
