"""The question-answering demo: ask over your own passages, see what was retrieved and sent, compare the switches.

`build(pipeline)` takes any `QaPipeline`. Handlers are plain functions of the page's values; an error of the library is
shown in the library's words. A model with an adapter can be asked without it.
"""

from __future__ import annotations

import dataclasses
import html
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import gradio as gr

from apps.qa import QaEvaluator, QaExample, QaPipeline, load_data
from apps.qa.passages import sentences
from core.errors import AppInputError, GraftError
from core.retrieval.words import plain
from demos import look

ROWS = 200
"""Questions of an upload that the page answers itself."""
EXAMPLES = [
    ["Is it true that the lung takes up oxygen?"],
    ["Is it true that the kidney makes insulin?"],
    ["What filters the blood?"],
]


class Page:
    """The handlers of one page, around one pipeline."""

    def __init__(self, pipeline: QaPipeline) -> None:
        self.pipeline = pipeline
        self.solved = load_data(reader="embedded")
        everything = [*load_data(reader="embedded", split="test"), *self.solved]
        self.passages = list(dict.fromkeys(passage for row in everything for passage in row.contexts))

    def ask(
        self, question: str, passages: str, shots: int = 0, closed: bool = False, count: int = 3, snippets: int = 0,
        tuned: bool = True,
    ) -> tuple[str, str, str, str]:  # fmt: skip
        """(banner, answers, passages found, what happened)."""
        try:
            if not (question or "").strip():
                raise AppInputError("there is no question", hint="type one")
            corpus = [line.strip() for line in (passages or "").splitlines() if line.strip()]
            self.set(shots, closed, count, snippets)
            self.pipeline.use(corpus=corpus or self.passages, solved=self.solved)
            start = time.perf_counter()
            with self.as_tuned(tuned):
                choice = self.pipeline.predict([QaExample(question)])[0]
                result = self.pipeline(question, max_new_tokens=24)
            elapsed = (time.perf_counter() - start) * 1e3
            happened = look.what_happened(result.meta, result.text, elapsed)
            tiles = look.facts({"if it is a yes-no question": choice, "in words": result.text or "nothing"})
            found = marked(question, result.meta["passages"], result.meta["citations"])
            return look.banner(result.meta["warnings"]), tiles, found, happened
        except GraftError as error:
            return look.banner(error), "", "", ""

    @property
    def has_adapter(self) -> bool:
        return hasattr(getattr(self.pipeline.engine, "model", None), "disable_adapter")

    def as_tuned(self, tuned: bool) -> AbstractContextManager[Any]:
        """The model as it is, or without its adapter."""
        return nullcontext() if tuned or not self.has_adapter else self.pipeline.engine.model.disable_adapter()

    def set(self, shots: int, closed: bool, count: int = 3, snippets: int = 0) -> None:
        chosen = {"shots": int(shots), "passages": int(count), "snippets": int(snippets)}
        template = "closed" if closed else "rag"
        self.pipeline.config = dataclasses.replace(self.pipeline.config, template=template, **chosen)

    def evaluate(
        self, file: str | None, shots: int = 0, tuned: bool = True
    ) -> tuple[str, str, list[list[Any]], str, list[list[Any]], str | None]:
        """(banner, summary, metric rows, histogram, worst rows, archive) of a JSONL file, or of what ships."""
        try:
            examples = load_data(file, limit=ROWS) if file else load_data(reader="embedded", split="test")
            self.set(shots, False)
            self.pipeline.use(solved=self.solved)
            start = time.perf_counter()
            with self.as_tuned(tuned):
                report = QaEvaluator().score(self.pipeline.predict(examples, max_new_tokens=24), examples)
            rows: list[list[Any]] = [[name, str(m), m.n] for name, m in report.metrics.items() if m.value is not None]
            values = [100 * row["score"] for row in report.rows if "score" in row]
            plot = look.histogram(values, low=0, high=100, bins=10, title=f"Score of each question ({len(values)})")
            worst = [[row["input"], row["reference"], str(row["prediction"])] for row in report.failures]
            tiles = {report.primary: f"{report.value():.1f} %", "questions": str(len(examples))}
            summary = look.facts({**tiles, "seconds": f"{time.perf_counter() - start:.1f}"})
            return "", summary, rows, plot if values else "", worst, look.archive(report)
        except GraftError as error:
            return look.banner(error), "", [], "", [], None


def marked(question: str, passages: Any, cited: Any = ()) -> str:
    """The passages, sentence by sentence: words of the question marked, those that hold the answer named."""
    asked = set(plain(question))
    rows = []
    for number, text in enumerate(passages):
        words = " ".join(
            f"<mark>{html.escape(word)}</mark>" if set(plain(word)) & asked else html.escape(word)
            for sentence in sentences(text)
            for word in sentence.split()
        )
        holds = ' <span class="graft-chip">holds the answer</span>' if number in cited else ""
        rows.append(f"<div>{number + 1}. {words}{holds}</div>")
    return f'<div class="graft-prompt">{"".join(rows) or "<div>no passage was found</div>"}</div>'


def describe(pipeline: QaPipeline) -> list[str]:
    """Chips of the header."""
    return [*look.model_chips(pipeline), f"template {pipeline.config.template}"]


def build(pipeline: QaPipeline) -> gr.Blocks:
    """The page."""
    page = Page(pipeline)
    with gr.Blocks(title="graft qa", analytics_enabled=False) as blocks:
        line = "Ask over passages, see what was found and sent, switch shots and passages on and off."
        gr.HTML(look.header("question answering", line, describe(pipeline)), padding=False)
        if untaught := look.untaught(pipeline, "graft train qa/pubmedqa"):
            gr.HTML(untaught, padding=False)
        with gr.Tab("Ask", id="ask"):
            _ask_tab(page)
        with gr.Tab("Evaluate", id="evaluate"):
            _evaluate_tab(page)
    return blocks


def _ask_tab(page: Page) -> None:
    with gr.Row(equal_height=False):
        with gr.Column():
            question = gr.Textbox(label="Question", value=EXAMPLES[0][0], lines=2)
            passages = gr.Textbox(
                label="Passages, one a line", lines=5, placeholder="\n".join(page.passages[:3]),
                info="empty takes those that ship",
            )  # fmt: skip
            go = gr.Button("Ask", variant="primary")
            with gr.Accordion("Switches", open=True):
                with gr.Row():
                    shots = gr.Slider(0, 10, 2, step=1, label="Answered questions shown before")
                    count = gr.Slider(1, 10, 3, step=1, label="Passages found")
                    snippets = gr.Slider(0, 10, 0, step=1, label="Sentences kept", info="0: whole passages")
                with gr.Row():
                    closed = gr.Checkbox(False, label="Without passages")
                    tuned = gr.Checkbox(True, label="With the adapter", visible=page.has_adapter)
            gr.Examples(EXAMPLES, [question], label="Examples", cache_examples=False)
        with gr.Column():
            problem = gr.HTML("", elem_id="ask-banner", elem_classes="graft-slot", padding=False)
            answer = gr.HTML(look.empty("The answer."), padding=False)
            found = gr.HTML(look.empty("The passages that were found."), padding=False)
            with gr.Accordion("What happened", open=True):
                happened = gr.HTML(look.empty("Ask to see the prompt as it was sent."), padding=False)
    inputs, outputs = [question, passages, shots, closed, count, snippets, tuned], [problem, answer, found, happened]
    go.click(page.ask, inputs, outputs, api_name="ask", show_progress="hidden")


def _evaluate_tab(page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = gr.File(label="JSONL of questions", file_types=[".jsonl"], height=92, elem_classes="graft-file")
            gr.Markdown("Without a file the questions that ship are scored.")
            shots = gr.Slider(0, 10, 0, step=1, label="Answered questions shown before")
            tuned = gr.Checkbox(True, label="With the adapter", visible=page.has_adapter)
            go = gr.Button("Score", variant="primary")
        with gr.Column(scale=2, min_width=420):
            problem = gr.HTML("", elem_id="evaluate-banner", elem_classes="graft-slot", padding=False)
            summary = gr.HTML(look.empty("Metrics, and the questions that went wrong, appear here."), padding=False)
            plot = gr.HTML("", elem_classes="graft-slot", padding=False)
            download = gr.DownloadButton("Download report", visible=False)
    heads, kinds = ["metric", "value", "n"], ["str", "str", "number"]
    metrics = gr.Dataframe(headers=heads, datatype=kinds, label="Metrics", interactive=False, visible=False)
    heads = ["question", "wanted", "answered"]
    worst = gr.Dataframe(headers=heads, label="Wrong", interactive=False, wrap=True, visible=False)
    go.click(
        lambda *given: look.report_shown(page.evaluate(*given)),
        [file, shots, tuned],
        [problem, summary, metrics, plot, worst, download],
        api_name="evaluate",
    )
