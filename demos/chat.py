"""The chat demo: talk to a model, see the prompt that it was sent, and score answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from apps.chat import ChatEvaluator, ChatExample, ChatPipeline, load_data
from apps.chat.data import sniff
from core.errors import AppInputError, DataError, GraftError
from core.inference.request import Result
from demos import look

EXAMPLES = ["What is 14 plus 27?", "Which is larger, 58 or 85?", "Spell cloud backwards."]
NOTHING_YET = look.empty("Ask something to see the prompt, the tokens and the time.")
ROWS_ANSWERED = 200
"""How many rows of an upload the page answers itself."""


class Page:
    """The handlers of one page, around one pipeline."""

    def __init__(self, pipeline: ChatPipeline) -> None:
        self.pipeline = pipeline

    def answer(
        self, text: str, turns: list[dict[str, str]], system: str, temperature: float, budget: int
    ) -> Iterator[tuple[Any, list[dict[str, str]], str, str]]:
        """(text box, conversation, banner, what happened), again at every step of the stream.

        The text box is emptied when the question is taken and left alone after that: what is typed into it while the
        answer is made stays.
        """
        turns = list(turns or [])
        # a question that was stopped before its first word gives way: two in a row are no conversation
        kept = turns[:-1] if turns and turns[-1]["role"] == "user" else turns
        given = [{"role": turn["role"], "content": _plain(turn["content"])} for turn in kept]
        messages = [*given, {"role": "user", "content": text or ""}]
        if (system or "").strip():
            messages.insert(0, {"role": "system", "content": system.strip()})
        settings = {"temperature": float(temperature), "max_new_tokens": int(budget)}
        start, so_far, done = time.perf_counter(), "", Result("")
        if (text or "").strip():
            yield "", [*kept, _turn("user", text)], "", look.empty("Sent; nothing has come back yet.")
        try:
            for event in self.pipeline.stream({"messages": messages}, **settings):
                if isinstance(event.result, Result):
                    done = event.result
                    continue
                so_far += event.text
                shown = [*kept, _turn("user", text), _turn("assistant", so_far)]
                yield gr.skip(), shown, "", look.empty(f"{event.tokens} tokens in {event.t_ms:.0f} ms")
        except GraftError as error:
            yield text, turns, look.banner(error), look.empty("Nothing was sent to the model.")
            return
        elapsed = (time.perf_counter() - start) * 1e3
        notes = [] if done.text else ["the answer is empty"]
        shown = [*kept, _turn("user", text), _turn("assistant", done.text)]
        yield gr.skip(), shown, look.banner(notes), look.what_happened(done.meta, done.text, elapsed)

    def evaluate(self, file: str | None) -> tuple[str, str, list[list[Any]], str, list[list[Any]], str | None]:
        """(banner, summary, metric rows, histogram, worst rows, path of the report archive)."""
        try:
            start = time.perf_counter()
            if not file:
                raise AppInputError("nothing to score yet", hint="upload a JSON or JSONL file of conversations")
            predictions, examples = self.read_upload(Path(file))
            return self.scored(predictions, examples, start)
        except GraftError as error:
            return look.banner(error), "", [], "", [], None

    def evaluate_sample(self) -> tuple[str, str, list[list[Any]], str, list[list[Any]], str | None]:
        """Answer questions that ship with the project, and score the answers."""
        try:
            start = time.perf_counter()
            examples = load_data(reader="embedded", split="test", limit=50)
            return self.scored(self.answers(examples), examples, start)
        except GraftError as error:
            return look.banner(error), "", [], "", [], None

    def read_upload(self, file: Path) -> tuple[list[str], list[ChatExample]]:
        """Answers and conversations of a file; rows may bring their own "prediction", else the model answers."""
        sniff(file)
        examples = load_data(file)
        given = [row.get("prediction") for row in _rows(file)]
        if len(given) == len(examples) and all(isinstance(text, str) for text in given):
            return given, examples
        if any(text is not None for text in given):
            raise DataError("only some rows have a prediction", file=file.name, field="prediction")
        if len(examples) > ROWS_ANSWERED:
            raise AppInputError(
                f"{len(examples)} rows without predictions; this page answers at most {ROWS_ANSWERED}",
                hint="use graft eval on the command line for more",
            )
        return self.answers(examples), examples

    def answers(self, examples: list[ChatExample]) -> list[str]:
        return [result.text for result in self.pipeline(examples, max_new_tokens=64)]

    def scored(
        self, predictions: list[str], examples: list[ChatExample], start: float
    ) -> tuple[str, str, list[list[Any]], str, list[list[Any]], str | None]:
        """What the Evaluate tab shows of a report."""
        report = ChatEvaluator().score(predictions, examples)
        metrics: list[list[Any]] = []
        for name, metric in report.metrics.items():
            if metric.value is None:
                metrics.append([name, "–", "", metric.n, f"skipped: {metric.skipped}"])
                continue
            interval = f"{metric.ci95[0]:.2f} – {metric.ci95[1]:.2f}" if metric.ci95 else ""
            arrow = "↑" if metric.higher_is_better else "↓"
            metrics.append([f"{name} {arrow}", f"{metric.value:.2f}", interval, metric.n, _MEANING[name]])
        values = [row["rouge_l"] for row in report.rows if "rouge_l" in row]
        plot = look.histogram(values, low=0, high=100, bins=20, title=f"ROUGE-L of each answer ({len(values)})")
        worst = [[row.get("rouge_l"), row["input"], row["reference"], row["prediction"]] for row in report.failures]
        primary = report.value()
        summary = look.facts(
            {
                "answers": str(len(predictions)),
                "ROUGE-L": "–" if primary is None else f"{primary:.1f}",
                "repetition": f"{report.value('repetition'):.1f}",
                "seconds": f"{time.perf_counter() - start:.1f}",
            }
        )
        return "", summary, metrics, plot, worst, look.archive(report)


_MEANING = {
    "rouge_l": "longest common subsequence of words with the reference, F1",
    "word_f1": "words shared with the reference, F1",
    "exact": "the reference's words in its order",
    "right": "the reference's last number or word",
    "repetition": "four-word runs that occurred before in the answer",
    "empty": "answers without text",
}


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _plain(content: Any) -> str:
    """A turn's text; the page sends it back in parts."""
    if isinstance(content, list):
        return "".join(part.get("text", "") if isinstance(part, dict) else str(part) for part in content)
    return str(content)


def _rows(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return json.loads(text)


def describe(pipeline: ChatPipeline) -> list[str]:
    """Chips of the header: what is loaded, its size and where it runs."""
    from apps.chat import prompts

    return [
        *look.model_chips(pipeline),
        f"template {prompts.chosen(pipeline.config.template or 'auto', pipeline.tokenizer)}",
    ]


def build(pipeline: ChatPipeline) -> gr.Blocks:
    """The page."""
    page = Page(pipeline)
    with gr.Blocks(title="graft chat", analytics_enabled=False) as blocks:
        line = "Talk to the model, see what it was sent, and score answers."
        gr.HTML(look.header("chat", line, describe(pipeline)), padding=False)
        if untaught := look.untaught(pipeline, "graft train chat/sft"):
            gr.HTML(untaught, padding=False)
        with gr.Tab("Chat", id="chat"):
            _chat_tab(page)
        with gr.Tab("Evaluate", id="evaluate"):
            _evaluate_tab(page)
    return blocks


def _chat_tab(page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=3, min_width=420):
            turns = gr.Chatbot(label="Conversation", height=420, buttons=["copy"])
            text = gr.Textbox(label="You", lines=2, placeholder="Ask something", submit_btn=False)
            with gr.Row():
                go = gr.Button("Send", variant="primary", scale=3)
                stop = gr.Button("Stop", scale=1, min_width=80)
                new = gr.Button("New", scale=1, min_width=80)
            gr.Examples([[example] for example in EXAMPLES], [text], label="Examples", cache_examples=False)
        with gr.Column(scale=2, min_width=320):
            problem = gr.HTML("", elem_id="chat-banner", elem_classes="graft-slot", padding=False)
            with gr.Accordion("Settings", open=True):
                system = gr.Textbox(page.pipeline.config.system or "", label="System", lines=2)
                temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0: the most probable token")
                budget = gr.Slider(8, 1024, 128, step=8, label="New tokens at most")
            with gr.Accordion("What happened", open=True):
                happened = gr.HTML(NOTHING_YET, padding=False)
    inputs, outputs = [text, turns, system, temperature, budget], [text, turns, problem, happened]
    answering = look.streams(go, stop, [go.click, text.submit], page.answer, inputs, outputs, api_name="answer")
    new.click(lambda: ("", [], "", NOTHING_YET), None, outputs, cancels=answering, api_visibility="private")


def _evaluate_tab(page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = gr.File(
                label="Conversations with answers, JSON or JSONL", file_types=[".json", ".jsonl"], height=110,
                elem_classes="graft-file",
            )  # fmt: skip
            gr.Markdown(
                'Alpaca, ShareGPT or messages. Rows may bring a "prediction"; '
                f"without one the model answers (at most {ROWS_ANSWERED} rows)."
            )
            go = gr.Button("Score", variant="primary")
            sample = gr.Button("Try 50 shipped questions")
        with gr.Column(scale=2, min_width=420):
            problem = gr.HTML("", elem_id="evaluate-banner", elem_classes="graft-slot", padding=False)
            summary = gr.HTML(look.empty("Metrics with intervals and the worst answers appear here."), padding=False)
            plot = gr.HTML("", elem_classes="graft-slot", padding=False)
            download = gr.DownloadButton("Download report", visible=False)
    metrics = gr.Dataframe(
        headers=["metric", "value", "95 % interval", "n", "meaning"],
        datatype=["str", "str", "str", "number", "str"], label="Metrics", interactive=False, wrap=True, visible=False,
        column_widths=["16%", "12%", "18%", "8%", "46%"],
    )  # fmt: skip
    worst = gr.Dataframe(
        headers=["ROUGE-L", "question", "reference", "answer"], datatype=["number", "str", "str", "str"],
        label="Worst 20 answers", interactive=False, wrap=True, visible=False,
        column_widths=["8%", "30%", "31%", "31%"],
    )  # fmt: skip
    outputs = [problem, summary, metrics, plot, worst, download]

    go.click(lambda given: look.report_shown(page.evaluate(given)), [file], outputs, api_name="evaluate")
    sample.click(lambda: look.report_shown(page.evaluate_sample()), None, outputs, api_name="evaluate_sample")
