"""The question-answering demo: ask over your own passages, see what was retrieved and sent, compare the switches.

`build(pipeline)` takes any `QaPipeline`. Handlers are plain functions of the page's values; an error of the library is
shown in the library's words.
"""

from __future__ import annotations

import dataclasses
import html
import time
from typing import Any

import gradio as gr

from apps.qa import QaEvaluator, QaExample, QaPipeline, load_data
from core.errors import AppInputError, GraftError
from core.retrieval.words import plain
from demos import look

ROWS = 200
"""Questions of an upload that the page answers itself."""


class Page:
    """The handlers of one page, around one pipeline."""

    def __init__(self, pipeline: QaPipeline) -> None:
        self.pipeline = pipeline
        self.solved = load_data(reader="embedded")
        self.passages = list(dict.fromkeys(passage for row in self.solved for passage in row.contexts))

    def ask(self, question: str, passages: str, shots: int = 0, closed: bool = False) -> tuple[str, str, str, str]:
        """(banner, answer, passages found, what happened)."""
        try:
            if not (question or "").strip():
                raise AppInputError("there is no question", hint="type one")
            corpus = [line.strip() for line in (passages or "").splitlines() if line.strip()]
            self.set(shots, closed)
            self.pipeline.use(corpus=corpus or self.passages, solved=self.solved)
            start = time.perf_counter()
            example = QaExample(question)
            choice = self.pipeline.predict([example])[0]
            result = self.pipeline(question, max_new_tokens=24)
            elapsed = (time.perf_counter() - start) * 1e3
            happened = look.what_happened(result.meta, result.text, elapsed)
            answer = f"yes or no: {choice}\nin words: {result.text}"
            return look.banner(result.meta["warnings"]), answer, marked(question, result.meta["passages"]), happened
        except GraftError as error:
            return look.banner(error), "", "", ""

    def set(self, shots: int, closed: bool) -> None:
        template = "closed" if closed else "rag"
        self.pipeline.config = dataclasses.replace(self.pipeline.config, shots=int(shots), template=template)

    def evaluate(self, file: str | None, shots: int = 0) -> tuple[str, list[list[str]]]:
        """(banner, metrics) of a JSONL file of questions, or of those that ship."""
        try:
            examples = load_data(file, limit=ROWS) if file else load_data(reader="embedded", split="test")
            self.set(shots, False)
            self.pipeline.use(solved=self.solved)
            report = QaEvaluator().score(self.pipeline.predict(examples, max_new_tokens=24), examples)
            rows: list[list[str]] = [
                [name, str(m), str(m.n)] for name, m in report.metrics.items() if m.value is not None
            ]
            return "", rows
        except GraftError as error:
            return look.banner(error), []


def marked(question: str, passages: Any) -> str:
    """The passages, words of the question marked."""
    asked = set(plain(question))
    rows = []
    for number, text in enumerate(passages, 1):
        words = " ".join(
            f"<mark>{html.escape(word)}</mark>" if set(plain(word)) & asked else html.escape(word)
            for word in text.split()
        )
        rows.append(f"<div>{number}. {words}</div>")
    return f'<div class="graft-prompt">{"".join(rows) or "<div>no passage was found</div>"}</div>'


def describe(pipeline: QaPipeline) -> list[str]:
    """Chips of the header."""
    model = getattr(pipeline.engine, "model", None)
    name = str(pipeline.source.get("path", type(pipeline.engine).__name__)).rpartition("/")[2]
    size = [f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters"] if model is not None else []
    return [name, *size, f"template {pipeline.config.template}"]


def build(pipeline: QaPipeline) -> gr.Blocks:
    """The page."""
    page = Page(pipeline)
    with gr.Blocks(title="graft qa", analytics_enabled=False) as blocks:
        line = "Ask over passages, see what was found and sent, switch shots and passages on and off."
        gr.HTML(look.header("question answering", line, describe(pipeline)), padding=False)
        with gr.Tab("Ask", id="ask"):
            with gr.Row(equal_height=False):
                with gr.Column():
                    question = gr.Textbox(label="Question", value="Is it true that the lung takes up oxygen?", lines=2)
                    passages = gr.Textbox(
                        label="Passages, one a line", lines=5, placeholder="\n".join(page.passages[:3]),
                        info="empty takes those that ship",
                    )  # fmt: skip
                    shots = gr.Slider(0, 10, 2, step=1, label="Answered questions shown before")
                    closed = gr.Checkbox(False, label="Without passages")
                    go = gr.Button("Ask", variant="primary")
                with gr.Column():
                    problem = gr.HTML("", elem_classes="graft-slot", padding=False)
                    answer = gr.Textbox(label="Answer", lines=2, interactive=False)
                    found = gr.HTML(look.empty("The passages that were found."), padding=False)
                    with gr.Accordion("What happened", open=True):
                        happened = gr.HTML(look.empty("Ask to see the prompt as it was sent."), padding=False)
            outputs = [problem, answer, found, happened]
            go.click(page.ask, [question, passages, shots, closed], outputs, api_name="ask", show_progress="hidden")
        with gr.Tab("Evaluate", id="evaluate"):
            file = gr.File(label="JSONL of questions; empty takes those that ship", file_types=[".jsonl"])
            count = gr.Slider(0, 10, 0, step=1, label="Answered questions shown before")
            score = gr.Button("Score", variant="primary")
            problem = gr.HTML("", elem_classes="graft-slot", padding=False)
            table = gr.Dataframe(headers=["metric", "value", "n"], interactive=False, label="Metrics")
            score.click(page.evaluate, [file, count], [problem, table], api_name="evaluate")
    return blocks
