"""The CUDA demo: an operator becomes a kernel that is compiled, checked on many inputs and timed, round after round.

`build(pipeline)` takes any `CudaPipeline`; without a run it plays recorded searches over a few operators, and kernels
of one's own can be checked against any of them. Handlers are plain functions of the page's values, so tests call them
directly. Without a GPU kernels run in the emulator and times are estimates, and the page says so.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from apps.cuda import CudaEvaluator, CudaPipeline
from apps.cuda.example import CudaExample, example_from
from apps.cuda.model import occupancy
from apps.cuda.plan import PlanError, parse_plan
from apps.cuda.recorded import examples
from apps.cuda.search import fastest
from apps.cuda.verdict import STAGES, CudaVerdict
from apps.cuda.verifier import feedback
from core.errors import AppInputError, GraftError
from core.inference.refine import LoopEvent
from demos import look
from demos.upload import Scored, score_upload

OWN = "my own operator"
GREEN, RED, GREY, BLUE, AMBER = "#2f7d4f", "#b3261e", "#9aa4b2", "#3b6ea8", "#b7791f"

STYLE = "<style>.graft-code textarea {font-family: var(--font-mono); font-size: 12.5px; line-height: 1.5}</style>"

Shown = tuple[str, str, str, str, str, str, str]
"""Banner, stage lights with the verdict, code, checks, resources, times, what ran with the compiler's log."""

BLANK: Shown = ("", look.empty("Nothing was checked yet."), "", "", "", look.empty("Nothing was timed yet."), "")
"""What the page shows of an operator that was just chosen."""


class Page:
    """The handlers of one page, around one pipeline."""

    def __init__(self, pipeline: CudaPipeline) -> None:
        self.pipeline = pipeline
        self.tasks = {e.spec: e for e in examples()}

    def task(self, name: str, reference: str) -> CudaExample:
        """The chosen operator, or the user's own."""
        known = self.tasks.get(name)
        if known is not None and reference.strip() == known.reference.strip():
            return known
        if not reference or not reference.strip():
            raise AppInputError("there is no operator", hint="paste a PyTorch module, or choose an example")
        return self.pipeline.to_example(reference)

    def fill(self, name: str) -> str:
        """The reference of an example."""
        known = self.tasks.get(name)
        return known.reference if known is not None else ""

    def search(self, name: str, reference: str, rounds: int = 4) -> Iterator[Shown]:
        """Write, compile, check and time, showing every candidate as it is judged."""
        start, seen = time.perf_counter(), []
        yield "", look.empty("Writing …"), "", "", "", "", ""
        try:
            task = self.task(name, reference)
            for event in self.pipeline.attempts(task, rounds=int(rounds)):
                if event.kind == "verified" and event.candidate is not None and not event.known:
                    seen.append(event)
                    yield self._shown(seen, start)
        except GraftError as error:
            yield look.banner(error), *BLANK[1:5], rounds_drawn(seen) or BLANK[5], ""

    def check(self, name: str, reference: str, answer: str) -> Shown:
        """Judge a kernel of the user's own."""
        start = time.perf_counter()
        try:
            task = self.task(name, reference)
            if not answer or not answer.strip():
                raise AppInputError(
                    "there is no kernel to check", hint="paste CUDA C++ that opens with its launch plan"
                )
            verdict = self.pipeline.harness().verify(task, answer)
        except GraftError as error:
            return look.banner(error), *BLANK[1:]
        return self._panes(verdict, times([("this kernel", verdict)]), start)

    def _shown(self, seen: Sequence[LoopEvent], start: float) -> Shown:
        latest = seen[-1].candidate
        assert latest is not None
        return self._panes(latest.verdict.artifacts["verdict"], rounds_drawn(seen), start)

    def _panes(self, verdict: CudaVerdict, drawn: str, start: float) -> Shown:
        return (
            "",
            lights(verdict),
            listing(verdict),
            checks(verdict),
            resources(verdict),
            drawn,
            self.ran(verdict, start),
        )

    def ran(self, verdict: CudaVerdict, start: float) -> str:
        """Tools, isolation, times, and the compiler's log."""
        harness = self.pipeline.harness()
        said = [f"{k}: {v}" for k, v in harness.versions().items()]
        said += [f"a look by {name}: {what}" for name, what in verdict.looks.items()]
        rows = "".join(f"<li>{html.escape(words)}</li>" for words in said)
        tiles = look.facts({
            "engine": harness.engine, "isolation": harness.level, "check, ms": f"{verdict.seconds * 1e3:,.0f}",
            "all, ms": f"{(time.perf_counter() - start) * 1e3:,.0f}", "trials": str(len(verdict.trials)),
        })  # fmt: skip
        weak = (
            look.banner(["Weak isolation: this machine cannot hold untrusted code."]) if harness.level == "weak" else ""
        )
        log = html.escape(verdict.log or "no compiler ran")
        return f'{weak}{tiles}<ul>{rows}</ul><pre class="graft-prompt">{log}</pre>'

    def evaluate(self, upload: str | None) -> Scored:
        """A JSONL of operators with predictions, judged."""
        return score_upload(upload, CudaEvaluator(), example_from, "reference", "status")


def lights(verdict: CudaVerdict) -> str:
    """A light for each stage, and the verdict in words; no light where the kernel is not what failed."""
    blameless = verdict.status in ("invalid_problem", "error")
    reached, parts = -1 if blameless else STAGES.index(verdict.stage), []
    for number, stage in enumerate(STAGES):
        good = number < reached or verdict.passed
        colour = GREEN if good else RED if number == reached else GREY
        dot = f'<span style="width:.8em;height:.8em;border-radius:50%;background:{colour}"></span>'
        parts.append(
            f'<span style="display:inline-flex;align-items:center;gap:.4em;margin-right:1.4em">{dot}{stage}</span>'
        )
    colour = GREEN if verdict.passed else RED
    words = f'<p><b style="color:{colour}">{html.escape(verdict.meaning)}</b></p>'
    remarks = look.banner([f.replace("_", " ") for f in verdict.flags]) if verdict.flags else ""
    more = len(verdict.diagnostics) > 1  # one is the verdict's own, and its line is marked in the code
    said = feedback(verdict).partition("\n")[2] if more and not verdict.passed else ""
    told = f'<pre style="white-space:pre-wrap">{html.escape(said)}</pre>' if said else ""
    return f"<div>{''.join(parts)}</div>{words}{remarks}{told}"


def listing(verdict: CudaVerdict) -> str:
    """The code with line numbers; lines with an error are marked and say it."""
    marks = {d.line: d.message for d in verdict.diagnostics if d.error and d.line}
    rows = []
    for number, line in enumerate(verdict.code.splitlines(), 1):
        style = f' style="background:{RED}22"' if number in marks else ""
        note = f'  <i style="color:{RED}">{html.escape(marks[number][:160])}</i>' if number in marks else ""
        rows.append(f'<div{style}><span style="opacity:.45">{number:>3} </span>{html.escape(line)}{note}</div>')
    return (
        f'<pre class="graft-prompt">{"".join(rows)}</pre>'
        if rows
        else look.empty(
            "No kernel in the answer: it is CUDA C++ with a __global__ function, opened by its launch plan."
        )
    )


CELL = "padding:4px 8px 4px 0;border:0;border-bottom:1px solid var(--border-color-primary);text-align:left"


def checks(verdict: CudaVerdict) -> str:
    """A row a trial: its shapes, whether it is right, how far off, and its worst element."""
    if not verdict.trials:
        return look.empty("Nothing was run.")
    rows = []
    for number, trial in enumerate(verdict.trials, 1):
        worst = trial.worst or {}
        place = f"{worst.get('output', '')}{worst.get('index', '')}"
        mark = f'<b style="color:{GREEN if trial.passed else RED}">{"right" if trial.passed else "wrong"}</b>'
        values = f"{worst['got']:.6g} | {worst['expected']:.6g}" if worst else "–"
        cells = [str(number), html.escape(trial.shapes), mark, f"{trial.relative:.2g}", f"{trial.ulp:.3g}",
                 html.escape(place), values]  # fmt: skip
        rows.append(
            '<tr style="border:0">'
            + "".join(f'<td style="{CELL};white-space:nowrap">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    names = ("", "shapes", "", "relative error", "ulp", "worst element", "got | expected")
    head = "".join(f'<th style="{CELL};vertical-align:bottom">{name}</th>' for name in names)
    body = f'<tr style="border:0">{head}</tr>{"".join(rows)}'
    table = f'<table style="border:0;border-collapse:collapse;font-size:12px">{body}</table>'
    alike = len(verdict.trials) > 3 and len({t.shapes for t in verdict.trials}) == 1
    note = look.banner(["All trials have one shape. Sizes that the reference's module names, as N = 300, are varied."])
    return f'<div style="overflow:auto">{table}</div>' + (f'<div style="margin:.8em 0">{note}</div>' if alike else "")


def resources(verdict: CudaVerdict) -> str:
    """Registers, shared memory and occupancy of each kernel, and what the emulator counted."""
    if not verdict.usage:
        return look.empty("Nothing was compiled.")
    try:
        launches = {row["kernel"]: row for row in parse_plan(verdict.plan).launches}
    except PlanError:
        launches = {}
    parts = []
    for used in verdict.usage:
        block = launches.get(used.kernel, {}).get("block", [256])
        threads = 1
        for size in block:
            threads *= size if isinstance(size, int) else 16
        fits = occupancy(min(threads, 1024), used.registers, used.shared, used.arch)
        title = f"{used.kernel} on {used.arch}: {fits.blocks} blocks an SM, limited by {fits.limit}"
        parts.append(f"<p><b>{html.escape(title)}</b></p>")
        for word, value, most, unit in (
            ("registers a thread", used.registers, 255, ""), ("shared memory a block", used.shared, 49152, " B"),
            ("spilled", used.spills, 1024, " B"), ("occupancy", round(100 * fits.share), 100, " %"),
        ):  # fmt: skip
            colour = RED if word == "spilled" and value else BLUE
            parts.append(bar(word, value / most, f"{value:,}{unit}", colour))
    shown = ("loads", "stores", "shared", "barriers", "sectors")
    counted = {k: many(v) for k, v in verdict.counts.items() if k in shown}
    return "".join(parts) + (f'<div style="margin-top:1em">{look.facts(counted)}</div>' if counted else "")


def many(number: int) -> str:
    """A count that fits a tile."""
    return f"{number:,}" if number < 1e6 else f"{number / 1e6:.2f} M"


def bar(word: str, share: float, value: str, colour: str, whisker: str = "") -> str:
    """A labelled bar of up to 260 pixels."""
    width = 260 * max(0.004, min(1.0, share))
    drawn = f'<span style="background:{colour};height:1em;width:{width:.0f}px"></span>'
    row = f'<span style="width:13em">{html.escape(word)}</span>{drawn}{value}{whisker}'
    return f'<div style="display:flex;gap:.6em;align-items:center">{row}</div>'


def times(rows: Sequence[tuple[str, CudaVerdict]]) -> str:
    """Bars of times with their intervals: PyTorch's where they were measured, then each candidate's."""
    found: list[tuple[str, Any, str]] = []
    for _, verdict in rows:
        for name, timing in verdict.baselines.items():
            if not any(word == f"PyTorch, {name}" for word, _, _ in found):
                found.append((f"PyTorch, {name}", timing, AMBER))
    for word, verdict in rows:
        if verdict.timing is not None:
            found.append((word, verdict.timing, GREEN))
    if not found:
        return look.empty("No kernel is right yet: only right kernels are timed.")
    most = max(t.median for _, t, _ in found) or 1.0
    drawn = "".join(
        bar(word, t.median / most, f"{t.median * 1e3:.2f} µs", colour,
            f' <span style="opacity:.6">[{t.low * 1e3:.2f}, {t.high * 1e3:.2f}]</span>' if t.high > t.low else "")
        for word, t, colour in found
    )  # fmt: skip
    note = "Estimated for one H100 from counted memory traffic at the emulator's small size; no GPU was used."
    told = look.banner([note]) if any(t.modelled for _, t, _ in found) else ""
    return f'{drawn}<div style="margin:.8em 0">{told}</div>'


def rounds_drawn(seen: Sequence[LoopEvent]) -> str:
    """The candidates by round, the best marked, and each one's feedback to open."""
    candidates = [e.candidate for e in seen if e.candidate is not None]
    if not candidates:
        return ""
    best = fastest(candidates)
    rows = [
        (f"round {c.round + 1}{' (best)' if c is best and c.verdict.passed else ''}", c.verdict.artifacts["verdict"])
        for c in candidates
    ]
    said = "".join(
        f"<details><summary>round {c.round + 1}: {html.escape(v.status.replace('_', ' '))}</summary>"
        f'<pre style="white-space:pre-wrap">{html.escape(c.verdict.feedback)}</pre></details>'
        for c, (_, v) in zip(candidates, rows)
    )
    return times(rows) + said


def describe(pipeline: CudaPipeline) -> list[str]:
    """What is loaded, and what checks kernels."""
    name = pipeline.source.get("path") or type(pipeline.engine).__name__.removesuffix("Engine").lower()
    try:
        harness = pipeline.harness()
        return [f"model: {name}", f"checks: {harness.engine}", f"isolation: {harness.level}"]
    except GraftError as error:
        return [f"model: {name}", error.what[:60]]


def build(pipeline: CudaPipeline) -> gr.Blocks:
    """The page."""
    page = Page(pipeline)
    names = list(page.tasks)
    with gr.Blocks(title="graft CUDA", analytics_enabled=False) as blocks:
        gr.HTML(
            look.header("CUDA", "From a PyTorch operator to a kernel that is right, and how fast.", describe(pipeline))
            + STYLE
        )
        banner = gr.HTML()
        with gr.Row():
            with gr.Column(scale=2):
                name = gr.Dropdown([*names, OWN], value=names[0], label="Operator")
                reference = gr.Textbox(
                    page.tasks[names[0]].reference,
                    label="Reference (PyTorch)",
                    lines=12,
                    max_lines=16,
                    elem_classes="graft-code",
                )
                rounds = gr.Slider(1, 10, value=4, step=1, label="Rounds")
                start, stop = look.go_and_stop("Search")
                own = gr.Textbox(label="Kernel of your own", lines=8, max_lines=16, elem_classes="graft-code",
                                 placeholder="/* launch {…} */ __global__ void …")  # fmt: skip
                check = gr.Button("Check my kernel")
            with gr.Column(scale=3):
                verdict = gr.HTML(look.empty("Nothing was checked yet."))
                code = gr.HTML()
                with gr.Tabs():
                    with gr.Tab("Time"):
                        drawn = gr.HTML(look.empty("Nothing was timed yet."))
                    with gr.Tab("Checks"):
                        trials = gr.HTML()
                    with gr.Tab("Resources"):
                        used = gr.HTML()
                    with gr.Tab("Compile log"):
                        ran = gr.HTML()
                    with gr.Tab("Evaluate"):
                        upload = gr.File(label="JSONL of operators with predictions", file_types=[".jsonl"])
                        score = gr.Button("Score")
                        metrics = gr.Dataframe(headers=["metric", "value", "n"], label="Metrics", interactive=False)
                        rows = gr.Dataframe(headers=["id", "status", "verdict"], label="Operators", interactive=False)
                        report = gr.File(label="Report", interactive=False)
        panes = [banner, verdict, code, trials, used, drawn, ran]
        name.change(lambda chosen: (page.fill(chosen), *BLANK), name, [reference, *panes])
        look.streams(start, stop, [start.click], page.search, [name, reference, rounds], panes, api_name="search")
        check.click(page.check, [name, reference, own], panes)
        score.click(page.evaluate, upload, [banner, metrics, rows, report])
    return blocks
