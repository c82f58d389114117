"""Designs of several files for an agent that writes them one by one: every step must compile, the whole must simulate.

    evaluator = DesignEvaluator(header=…, reference=…, testbench=…)
    ControlUnit(model, registry, store, evaluator, task=…)

Each file is held to the policy of the strict verdict, all files are elaborated together, and once the top module is
there it is judged by the strict verdict on every step. The testbench is the user's and out of the agent's reach.
"""

from __future__ import annotations

from collections.abc import Mapping

from apps.rtl import engines, source
from apps.rtl.example import RtlExample, completed
from apps.rtl.harness import RtlHarness
from apps.rtl.verifier import feedback
from core.agents.evaluate import StepReport

_ENDINGS = (".v", ".sv")


class DesignEvaluator:
    """Judges all Verilog files of a store together; other files are notes and are not looked at.

    Args:
        header, reference, testbench: of the whole, as in `RtlExample`. top: its module; by default the header's.
        harness: one to share.

    Raises:
        DataError: pieces that do not fit together. ToolMissing: no simulator.
    """

    def __init__(
        self, *, header: str = "", reference: str | None = None, testbench: str | None = None, top: str | None = None,
        testbench_top: str = "tb", harness: RtlHarness | None = None,
    ) -> None:  # fmt: skip
        whole = RtlExample(
            "a design", header, top or RtlExample.top, reference, testbench=testbench, testbench_top=testbench_top
        )
        self.example = completed(whole, given=top is not None)
        self.harness = harness or RtlHarness()

    def evaluate(self, files: Mapping[str, str]) -> StepReport:
        design = {path: text for path, text in files.items() if path.endswith(_ENDINGS)}
        failures = [failure for path, text in design.items() for failure in _refused(path, text)]
        if failures or not design:
            return StepReport(tuple(failures))
        if self.example.top in source.module_names("\n".join(design.values())):
            return self._judged(design)
        return StepReport(tuple(self._compiled(design)))

    def finished(self, files: Mapping[str, str]) -> StepReport:
        """As every step, and the top module must be there."""
        report = self.evaluate(files)
        code = "\n".join(text for path, text in files.items() if path.endswith(_ENDINGS))
        if report.passed and self.example.top not in source.module_names(code):
            return StepReport((f"there is no module '{self.example.top}' yet",))
        return report

    def _compiled(self, design: Mapping[str, str]) -> list[str]:
        """What Icarus says of the files under their own names."""
        names = {path: f"f{number}.sv" for number, path in enumerate(design)}
        done = self.harness.elaborate({names[path]: text for path, text in design.items()})
        if done.ok:
            return []
        text = done.last.err + done.last.out
        found = [
            f"{path}:{mark.line}: {mark.message}"
            for path, name in names.items()
            for mark in engines.diagnostics("iverilog", text, name)
            if mark.error
        ]
        return found or [f"the design does not compile: {done.status}"]

    def _judged(self, design: Mapping[str, str]) -> StepReport:
        text = "".join(f"{content}\n" for content in design.values())
        places = [(p, n) for p, content in design.items() for n, _ in enumerate(content.split("\n"), 1)]
        verdict = self.harness.verify(self.example, text, wave=True)
        if verdict.passed:
            return StepReport()
        before = text[: max(0, text.find(verdict.code.strip()))].count("\n")
        marks = [mark for mark in verdict.diagnostics if mark.error and 0 < mark.line + before <= len(places)]
        told = (f"{path}:{n}: {m.message}" for m in marks for path, n in [places[m.line + before - 1]])
        return StepReport(tuple(told) or (feedback(verdict),))


def _refused(path: str, text: str) -> list[str]:
    if (reason := source.problems_of(text)) is not None:
        return [f"{path}: {reason}"]
    return [f"{path}:{v.line}: {v.what}" for v in source.violations(text)]
