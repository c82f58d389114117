"""The RTL demo: a specification becomes Verilog, is checked, shown where it differs, and repaired.

`build(pipeline)` takes any `RtlPipeline`; without a run it plays a recording of a few tasks, and code of one's own can
be checked against any of them. Handlers are plain functions of the page's values, so tests call them directly. All
that runs, runs in the sandbox, whose isolation is always shown.
"""

from __future__ import annotations

import base64
import html
import re
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from apps.rtl import RtlEvaluator, RtlPipeline
from apps.rtl.example import RtlExample, example_from
from apps.rtl.recorded import examples
from apps.rtl.verdict import RtlVerdict
from apps.rtl.verifier import feedback
from core.errors import AppInputError, GraftError
from core.execution import Sandbox
from core.inference.refine import LoopEvent
from demos import look
from demos.upload import Scored, score_upload

OWN = "my own task"
ROWS_CHECKED = 200
"""Most rows of an upload that the page judges."""

Dump = tuple[bytes, dict | None] | None
"""A value change dump and the first difference in it, to be drawn again at another zoom."""
Shown = tuple[str, str, str, str, str, str, Dump]
"""Banner, code listing, waveform, what the verdict says, repair trace, what ran, and the waveform's data."""

BLANK: Shown = ("", "", "", look.empty("Nothing was checked yet."), "", "", None)
"""What the page shows of a task that was just chosen."""


class Page:
    """The handlers of one page, around one pipeline."""

    def __init__(self, pipeline: RtlPipeline) -> None:
        self.pipeline = pipeline
        self.tasks = {f"{e.family}: {textwrap.shorten(e.spec, 40, placeholder=' …')}": e for e in examples()}

    def task(self, name: str, spec: str, header: str, testbench: str, reference: str) -> RtlExample:
        """The chosen example, or the user's own fields."""
        known = self.tasks.get(name)
        if known is not None and (spec, header) == (known.spec, known.header):
            return known
        fields = {"header": header, "testbench": testbench, "reference": reference}
        given = {k: v for k, v in fields.items() if v and v.strip()}
        if not spec or not spec.strip():
            raise AppInputError("there is no specification", hint="write one, or choose an example")
        return self.pipeline.to_example(spec, **given)

    def fill(self, name: str) -> tuple[str, str, str, str]:
        """Specification, header, testbench and reference of an example."""
        known = self.tasks.get(name)
        return ("", "", "", "") if known is None else (
            known.spec, known.header, known.testbench or "", known.reference or ""
        )  # fmt: skip

    def write(
        self, name: str, spec: str, header: str, testbench: str, reference: str, rounds: int = 2
    ) -> Iterator[Shown]:
        """Write, check and repair, showing every attempt as it is judged."""
        start, attempts = time.perf_counter(), []
        yield "", look.empty("Writing …"), "", "", "", "", None
        try:
            task = self.task(name, spec, header, testbench, reference)
            for event in self.pipeline.attempts(task, rounds=int(rounds)):
                if event.kind == "verified" and event.candidate is not None:
                    attempts.append(event)
                    yield self._shown(task, attempts, start)
        except GraftError as error:
            yield look.banner(error), "", "", "", trace(attempts), "", None

    def check(self, name: str, spec: str, header: str, testbench: str, reference: str, code: str) -> Shown:
        """Judge code of the user's own."""
        start = time.perf_counter()
        try:
            task = self.task(name, spec, header, testbench, reference)
            if not code or not code.strip():
                raise AppInputError("there is no code to check", hint="paste a module")
            verdict = self.pipeline.harness().verify(task, code, wave=True)
        except GraftError as error:
            return look.banner(error), "", "", "", "", "", None
        return "", listing(verdict), wave(verdict), says(verdict), "", self.ran(verdict, start), dump(verdict)

    def _shown(self, task: RtlExample, attempts: list[LoopEvent], start: float) -> Shown:
        candidate = attempts[-1].candidate
        assert candidate is not None
        verdict: RtlVerdict = candidate.verdict.artifacts["verdict"]
        first = next((a.candidate for a in attempts if a.candidate and not a.candidate.verdict.passed), None)
        drawn, data = wave(verdict), dump(verdict)
        if verdict.passed and first is not None:
            differing: RtlVerdict = first.verdict.artifacts["verdict"]
            drawn, data = "<p>Where the first attempt differed:</p>" + wave(differing), dump(differing)
        return "", listing(verdict), drawn, says(verdict), trace(attempts), self.ran(verdict, start), data

    def zoom(self, data: Dump, around: int) -> str:
        """The last waveform with `around` changes on each side of its first difference."""
        return look.empty("Nothing was simulated yet.") if data is None else redrawn(data, int(around))

    def cost(self, code: str, reference: str) -> str:
        """Cells, flip-flops and depth of the code, beside those of the reference."""
        from apps.rtl.ppa import cost

        try:
            if not code or not code.strip():
                raise AppInputError("there is no code to measure", hint="write or paste a module first")
            mine = cost(code)
            theirs = cost(reference) if reference and reference.strip() else None
        except GraftError as error:
            return look.banner(error)
        return bars(mine, theirs)

    def schematic(self, code: str) -> str:
        """The netlist as an image."""
        from apps.rtl.schematic import schematic

        try:
            if not code or not code.strip():
                raise AppInputError("there is no code to draw", hint="write or paste a module first")
            drawn = schematic(code)
        except GraftError as error:
            return look.banner(error)
        # As an image it can run nothing, whatever the names in the code are.
        data = base64.b64encode(drawn.encode()).decode()
        return f'<img alt="schematic" style="max-width:100%" src="data:image/svg+xml;base64,{data}">'

    def evaluate(self, upload: str | None) -> Scored:
        """A JSONL of tasks with predictions, judged."""
        return score_upload(upload, RtlEvaluator(), example_from, "spec, header, testbench, reference", "letters")

    def ran(self, verdict: RtlVerdict, start: float) -> str:
        """Tools, isolation and times."""
        harness = self.pipeline.harness()
        versions = "".join(f"<li>{html.escape(v)}</li>" for v in harness.versions().values())
        tiles = look.facts(
            {
                "engine": verdict.engine,
                "isolation": harness.level,
                "check, ms": f"{verdict.seconds * 1e3:.0f}",
                "all, ms": f"{(time.perf_counter() - start) * 1e3:.0f}",
                "samples": "–" if verdict.samples is None else str(verdict.samples),
            }
        )
        weak = (
            look.banner(["Weak isolation: this machine cannot hold untrusted code."]) if harness.level == "weak" else ""
        )
        return f"{weak}{tiles}<ul>{versions}</ul>"


def says(verdict: RtlVerdict) -> str:
    """The verdict in words: a green or red line, then what more the model is told."""
    if verdict.passed:
        return f'<p style="color:#2f7d4f"><b>✓</b> {html.escape(verdict.meaning)}</p>'
    told = feedback(verdict).partition("\n")[2]
    head = f'<p style="color:#b3261e"><b>{verdict.letter}</b> {html.escape(verdict.meaning)}</p>'
    return head + (f"<pre>{html.escape(told)}</pre>" if told else "")


def listing(verdict: RtlVerdict) -> str:
    """The code with line numbers; lines with an error are marked and say it."""
    marks = {d.line: d.message for d in verdict.diagnostics if d.error}
    rows = []
    for number, line in enumerate(verdict.code.splitlines(), 1):
        style = ' style="background:#d3333322"' if number in marks else ""
        note = f'  <i style="color:#b3261e">{html.escape(marks[number])}</i>' if number in marks else ""
        rows.append(f'<div{style}><span style="opacity:.45">{number:>3} </span>{html.escape(line)}{note}</div>')
    return f'<pre class="graft-prompt">{"".join(rows)}</pre>' if rows else look.empty("No code in the answer.")


def dump(verdict: RtlVerdict) -> Dump:
    """What a verdict's waveform is drawn from."""
    return None if verdict.wave is None else (verdict.wave, verdict.mismatch)


def wave(verdict: RtlVerdict) -> str:
    """The waveform around the first difference."""
    data = dump(verdict)
    return look.empty("No waveform: nothing was simulated.") if data is None else redrawn(data)


def redrawn(data: tuple[bytes, dict | None], around: int = 12) -> str:
    """A waveform with so many changes on each side of its first difference."""
    from apps.rtl.wave import picture

    try:
        return picture(*data, around=around)
    except GraftError as error:
        return look.banner(error)


def trace(attempts: list[LoopEvent]) -> str:
    """Every attempt with its verdict."""
    parts = []
    for number, event in enumerate(attempts, 1):
        assert event.candidate is not None
        verdict = event.candidate.verdict
        mark = "passes" if verdict.passed else f"{verdict.stage}, score {verdict.score:.2f}"
        parts.append(
            f"<details{' open' if number == len(attempts) else ''}><summary>attempt {number}: {mark}</summary>"
            f"<pre>{html.escape(event.candidate.text.strip())}\n\n{html.escape(verdict.feedback)}</pre></details>"
        )
    return "".join(parts)


def bars(mine: Any, theirs: Any) -> str:
    """Bars of cells, flip-flops and depth; the reference's beside where there is one."""
    rows = []
    for name, word in (("cells", "gates"), ("flops", "flip-flops"), ("depth", "longest path, gates")):
        pairs = [("this", getattr(mine, name), "#3b6ea8")] + (
            [("reference", getattr(theirs, name), "#2f7d4f")] if theirs else []
        )
        most = max(value for _, value, _ in pairs) or 1
        for who, value, colour in pairs:
            rows.append(
                f'<div style="display:flex;gap:.6em;align-items:center"><span style="width:16em">{word}, {who}</span>'
                f'<span style="background:{colour};height:1em;width:{240 * value / most:.0f}px"></span>{value}</div>'
            )
    return "".join(rows)


def describe(pipeline: RtlPipeline) -> list[str]:
    """What is loaded, and how code is held."""
    name = pipeline.source.get("path") or type(pipeline.engine).__name__.removesuffix("Engine").lower()
    best = next((p for p in Sandbox.probe() if p.available), None)
    return [f"model: {name}", f"isolation: {best.level} ({best.name})" if best else "isolation: none"]


def build(pipeline: RtlPipeline) -> gr.Blocks:
    """The page."""
    page = Page(pipeline)
    names = list(page.tasks)
    with gr.Blocks(title="graft RTL", analytics_enabled=False) as blocks:
        gr.HTML(look.header("RTL", "From a specification to Verilog that was simulated.", describe(pipeline)))
        banner = gr.HTML()
        with gr.Row():
            with gr.Column(scale=2):
                name = gr.Dropdown([*names, OWN], value=names[0], label="Task")
                spec = gr.Textbox(page.tasks[names[0]].spec, label="Specification", lines=4)
                header = gr.Textbox(page.tasks[names[0]].header, label="Module header", lines=6)
                with gr.Accordion("Testbench and reference", open=False):
                    testbench = gr.Textbox(page.tasks[names[0]].testbench, label="Testbench (module tb)", lines=8)
                    reference = gr.Textbox(page.tasks[names[0]].reference, label="Reference", lines=8)
                rounds = gr.Slider(0, 5, value=2, step=1, label="Repairs")
                write, stop = look.go_and_stop("Write and check")
                own = gr.Textbox(label="Code of your own", lines=8)
                check = gr.Button("Check my code")
            with gr.Column(scale=3):
                verdict = gr.HTML(look.empty("Nothing was checked yet."))
                code = gr.HTML()
                with gr.Tabs():
                    with gr.Tab("Waveform"):
                        drawn = gr.HTML()
                        around = gr.Slider(3, 60, value=12, step=1, label="Changes on each side")
                    with gr.Tab("Repair trace"):
                        repairs = gr.HTML()
                    with gr.Tab("Schematic"):
                        draw = gr.Button("Draw")
                        netlist = gr.HTML()
                    with gr.Tab("Cost"):
                        measure = gr.Button("Measure")
                        costs = gr.HTML()
                    with gr.Tab("What ran"):
                        ran = gr.HTML()
                    with gr.Tab("Evaluate"):
                        upload = gr.File(label="JSONL of tasks with predictions", file_types=[".jsonl"])
                        score = gr.Button("Score")
                        metrics = gr.Dataframe(headers=["metric", "value", "n"], label="Metrics", interactive=False)
                        rows = gr.Dataframe(headers=["id", "letters", "verdict"], label="Problems", interactive=False)
                        report = gr.File(label="Report", interactive=False)
        latest, data = gr.State(""), gr.State(None)
        fields = [name, spec, header, testbench, reference]
        panes = [banner, code, drawn, verdict, repairs, ran, data]
        shown_too = [latest, netlist, costs]
        name.change(lambda chosen: (*page.fill(chosen), *BLANK, "", "", ""), name, [*fields[1:], *panes, *shown_too])

        def written(*values: Any) -> Iterator[tuple]:
            for shown in page.write(*values):
                yield (*shown, plain(shown[1]))

        def checked(*values: Any) -> tuple:
            shown = page.check(*values)
            return (*shown, plain(shown[1]))

        look.streams(write, stop, [write.click], written, [*fields, rounds], [*panes, latest], api_name="written")
        check.click(checked, [*fields, own], [*panes, latest])
        around.release(page.zoom, [data, around], drawn)
        draw.click(page.schematic, latest, netlist)
        measure.click(page.cost, [latest, reference], costs)
        score.click(page.evaluate, upload, [banner, metrics, rows, report])
    return blocks


def plain(listed: str) -> str:
    """The code back out of a listing."""
    lines = re.findall(r'<span style="opacity:.45">[ \d]+ </span>(.*?)(?:  <i [^>]*>.*?</i>)?</div>', listed)
    return html.unescape("\n".join(lines)) + ("\n" if lines else "")
