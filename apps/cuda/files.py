"""Kernels in several files for an agent that writes them one by one: every step must compile, the whole must be right.

    evaluator = KernelsEvaluator(reference=…)
    ControlUnit(model, registry, store, evaluator, task=…)

Headers (.cuh, .h) and sources (.cu) are put together as the preprocessor would, each once, and held to the policy and
compiled on every step. The launch plan is the file `plan.json`; once the kernels that it names are there, the whole is
judged by the verdict. The reference is the user's and out of the agent's reach.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence

from apps.cuda import policy, source
from apps.cuda.example import example_from
from apps.cuda.harness import CudaHarness
from apps.cuda.plan import PlanError, parse_plan
from apps.cuda.verdict import Diagnostic
from apps.cuda.verifier import feedback
from core.agents.evaluate import StepReport

PLAN = "plan.json"
_HEADERS, _SOURCES = (".cuh", ".h"), (".cu",)
_INCLUDE = re.compile(r'\s*#\s*include\s*"([^"\n]+)"')
_ONCE = re.compile(r"\s*#\s*pragma\s+once\b")

Places = Sequence[tuple[str, int]]
"""Of every line of a unit, the file that it comes from and its line there."""


class KernelsEvaluator:
    """Judges all CUDA files of a store together; files of other kinds are notes and are not looked at.

    Args:
        reference, sizes, tolerance: of the operator, as in `CudaExample`. archs: what every step is compiled for.
        harness: one to share.

    Raises:
        DataError: a reference that is none. ToolMissing: no compiler, or no g++ for the emulator.
    """

    def __init__(
        self, *, reference: str = "", sizes: Mapping[str, int] | None = None, tolerance: float | None = None,
        archs: Sequence[str] = ("sm_90",), harness: CudaHarness | None = None,
    ) -> None:  # fmt: skip
        self.example = example_from({"reference": reference, "sizes": dict(sizes or {}), "tolerance": tolerance})
        self.harness = harness or CudaHarness(archs=archs)

    def evaluate(self, files: Mapping[str, str]) -> StepReport:
        return self._report(files, whole=False)

    def finished(self, files: Mapping[str, str]) -> StepReport:
        """As every step, and the plan and all its kernels must be there."""
        return self._report(files, whole=True)

    def _report(self, files: Mapping[str, str], whole: bool) -> StepReport:
        code, places, failures = put_together(files)
        failures += [_at(mark, places) for mark in policy.violations(code)]
        if failures:
            return StepReport(tuple(dict.fromkeys(failures)))
        named: set[str] = set()
        if PLAN in files:
            try:
                named = {launch["kernel"] for launch in parse_plan(files[PLAN]).launches}
            except PlanError as error:
                return StepReport((f"{PLAN}: {error}",))
        missing = sorted(named - set(source.kernels(code)))
        if PLAN in files and not missing:
            return StepReport(self._judged(code, files[PLAN], places))
        failures = list(self._compiled(code, places)) if places else []
        if whole and not failures:
            failures = [f"there is no kernel '{name}' yet" for name in missing] or [f"there is no {PLAN} yet"]
        return StepReport(tuple(failures))

    def _compiled(self, code: str, places: Places) -> tuple[str, ...]:
        if self.harness.compiler is None:
            return ()
        found = self.harness.compiler.compile_many(code, self.harness.archs)
        return tuple(dict.fromkeys(_at(mark, places) for one in found for mark in one.diagnostics))

    def _judged(self, code: str, plan: str, places: Places) -> tuple[str, ...]:
        verdict = self.harness.verify(self.example, source.candidate(code, plan))
        if verdict.passed:
            return ()
        before = verdict.code[: max(0, verdict.code.find(code.strip()))].count("\n")
        before -= code[: code.find(code.strip())].count("\n")
        own = (Diagnostic(mark.line - before, mark.message) for mark in verdict.diagnostics if mark.line > before)
        return tuple(dict.fromkeys(_at(mark, places) for mark in own)) or (feedback(verdict),)


def put_together(files: Mapping[str, str]) -> tuple[str, list[tuple[str, int]], list[str]]:
    """One translation unit of all files, headers first: (code, places, what is wrong with the files).

    An `#include "…"` of a file of the store becomes that file, the first time; lines keep their number.
    """
    lines: list[str] = []
    places: list[tuple[str, int]] = []
    failures: list[str] = []
    seen: set[str] = set()

    def add(path: str) -> None:
        seen.add(path)
        for number, line in enumerate(files[path].splitlines(), 1):
            found = _INCLUDE.match(line)
            target = None if found is None else _included(found[1], path, files)
            if target is not None and target not in seen:
                add(target)
            elif found is not None and target is None and found[1] not in policy.HEADERS:
                failures.append(f"{path}:{number}: there is no file '{found[1]}' yet")
            if line.lstrip().startswith("```"):
                failures.append(f"{path}:{number}: a fence (```) is no C++; write the file alone")
            lines.append("" if target is not None or _ONCE.match(line) else line)
            places.append((path, number))

    for endings in (_HEADERS, _SOURCES):
        for path in files:
            if path.endswith(endings) and path not in seen:
                add(path)
    return "\n".join(lines) + "\n", places, failures


def _included(name: str, path: str, files: Mapping[str, str]) -> str | None:
    beside = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
    return next((place for place in (beside, posixpath.normpath(name)) if place in files), None)


def _at(mark: Diagnostic, places: Places) -> str:
    if not 0 < mark.line <= len(places):
        return mark.message
    path, line = places[mark.line - 1]
    return f"{path}:{line}: {mark.message}"
