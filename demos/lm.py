"""The language-modelling demo: continue a text, see what surprises the model, and measure documents.

`build(pipeline)` takes any `LmPipeline`. Handlers are plain functions of the page's values, so tests call them
directly; an error of the library is shown in the library's words.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from apps.lm import LmEvaluator, LmPipeline, TextExample
from apps.lm.data import READERS
from core.data.rows import BadRows
from core.errors import AppInputError, GraftError
from core.inference.request import Result
from demos import look

EXAMPLES = ["The clever doctors can", "Letzte Woche ist das kluge Kind", "The old house"]
LOOKED_AT = 256
"""Tokens of a text that the page colours; measuring reads documents of any length."""
DOCUMENTS = 500


class Page:
    """The handlers of one page, around one pipeline."""

    def __init__(self, pipeline: LmPipeline) -> None:
        self.pipeline = pipeline

    def go_on(self, text: str, temperature: float, budget: int, seed: int) -> Iterator[tuple[str, str, str]]:
        """(banner, text and continuation, what happened), again at every step of the stream."""
        settings: dict[str, Any] = {"temperature": float(temperature), "max_new_tokens": int(budget), "seed": int(seed)}
        start, so_far, done = time.perf_counter(), "", Result("")
        try:
            for event in self.pipeline.stream(text or "", **settings):
                if isinstance(event.result, Result):
                    done = event.result
                    continue
                so_far += event.text
                yield "", text + so_far, look.empty(f"{event.tokens} tokens in {event.t_ms:.0f} ms")
        except GraftError as error:
            yield look.banner(error), "", look.empty("Nothing was sent to the model.")
            return
        elapsed = (time.perf_counter() - start) * 1e3
        notes = [] if done.text else ["the model ended the text here"]
        yield look.banner(notes), text + done.text, look.what_happened(done.meta, done.text, elapsed)

    def surprise(self, text: str) -> tuple[str, str, str]:
        """(banner, facts, the text with each token coloured by its bits)."""
        try:
            pieces = self.pipeline.surprise((text or "").strip(), LOOKED_AT)
        except GraftError as error:
            return look.banner(error), "", look.empty("Nothing was looked at.")
        bits = [value for _, value in pieces]
        read = "".join(piece for piece, _ in pieces)
        cut = len(read) < len((text or "").strip())
        facts = look.facts(
            {
                "tokens": str(len(bits)),
                "bits a token": f"{sum(bits) / len(bits):.2f}",
                "bits a byte": f"{sum(bits) / max(1, len(read.encode('utf-8'))):.2f}",
                "perplexity": f"{2 ** (sum(bits) / len(bits)):.1f}",
            }
        )
        note = look.banner([f"only the first {LOOKED_AT} tokens are shown"]) if cut else ""
        return note, facts, coloured(pieces)

    def measure(self, file: str | None) -> tuple[str, str, list[list[Any]], str, list[list[Any]], str | None]:
        """(banner, summary, metric rows, histogram, worst rows, path of the report archive)."""
        try:
            if not file:
                raise AppInputError("nothing to measure yet", hint="upload a .txt or a .jsonl file")
            reader = "jsonl" if file.endswith(".jsonl") else "text"
            unit = {} if reader == "jsonl" else {"unit": "paragraph"}
            examples = list(READERS.get(reader)(file, on_bad=BadRows("raise"), **unit))
            if len(examples) > DOCUMENTS:
                raise AppInputError(
                    f"{len(examples)} documents; this page reads at most {DOCUMENTS}",
                    hint="use graft eval on the command line for more",
                )
            return self.measured(examples)
        except GraftError as error:
            return look.banner(error), "", [], "", [], None

    def measure_sample(self) -> tuple[str, str, list[list[Any]], str, list[list[Any]], str | None]:
        """Sentences that ship with the project and that its model was not trained on."""
        try:
            return self.measured(list(READERS.get("embedded")(split="dev", on_bad=BadRows("raise")))[:60])
        except GraftError as error:
            return look.banner(error), "", [], "", [], None

    def measured(
        self, examples: Sequence[TextExample]
    ) -> tuple[str, str, list[list[Any]], str, list[list[Any]], str | None]:
        """What the Measure tab shows of a report."""
        start = time.perf_counter()
        report = LmEvaluator().score(self.pipeline.predict(examples), examples)
        table = []
        for name, metric in report.metrics.items():
            interval = f"{metric.ci95[0]:.2f} – {metric.ci95[1]:.2f}" if metric.ci95 else ""
            table.append([f"{name} ↓", f"{metric.value:.2f}", interval, metric.n, _MEANING[name.partition("/")[0]]])
        values = [row["bits_per_byte"] for row in report.rows]
        high = max(8.0, max(values))
        plot = look.histogram(
            values, low=0, high=high, bins=20, title=f"Bits per byte of each document ({len(values)})"
        )
        worst = [[round(row["bits_per_byte"], 2), row["tokens"], row["text"]] for row in report.failures]
        summary = look.facts(
            {
                "documents": str(len(examples)),
                "bits per byte": f"{report.value():.2f}",
                "chance": f"{report.value('byte_entropy'):.2f}",
                "seconds": f"{time.perf_counter() - start:.1f}",
            }
        )
        return "", summary, table, plot, worst, look.archive(report)


_MEANING = {
    "bits_per_byte": "what a byte of text costs; compares across tokenizers",
    "perplexity": "of a token; compares only with the same tokenizer",
    "byte_entropy": "what a byte costs who knows only how often each occurs here: chance",
}


def coloured(pieces: Sequence[tuple[str, float]]) -> str:
    """The text, a token the darker the more bits it costs; each tells its bits."""
    spans = [
        f'<span style="background:rgba(13,148,136,{min(bits / 16, 1) * 0.75:.2f});border-radius:3px"'
        f' title="{bits:.1f} bits">{html.escape(piece)}</span>'
        for piece, bits in pieces
    ]
    label = "The darker a token, the less the model expected it"
    return f'<div class="graft-label">{label}</div><pre class="graft-prompt">{"".join(spans)}</pre>'


def describe(pipeline: LmPipeline) -> list[str]:
    """Chips of the header: what is loaded, its size and where it runs."""
    chips = look.model_chips(pipeline)
    if pipeline.tokenizer is not None:
        chips.append(f"{len(pipeline.tokenizer):,} tokens")
    return chips


def build(pipeline: LmPipeline) -> gr.Blocks:
    """The page."""
    page = Page(pipeline)
    with gr.Blocks(title="graft lm", analytics_enabled=False) as blocks:
        line = "Continue a text, see what surprises the model, and measure documents."
        gr.HTML(look.header("lm", line, describe(pipeline)), padding=False)
        with gr.Tab("Continue", id="continue"):
            _continue_tab(page)
        with gr.Tab("Surprise", id="surprise"):
            _surprise_tab(page)
        with gr.Tab("Measure", id="measure"):
            _measure_tab(page)
    return blocks


def _continue_tab(page: Page) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=320):
            text = gr.Textbox(label="Text", lines=6, max_lines=14, placeholder="Begin a text …", autofocus=True)
            go, stop = look.go_and_stop("Continue")
            with gr.Accordion("Settings", open=False):
                temperature = gr.Slider(0, 2, 0.8, step=0.1, label="Temperature", info="0: the most probable token")
                budget = gr.Slider(8, 512, 64, step=8, label="New tokens at most")
                seed = gr.Number(1, label="Seed", precision=0)
        with gr.Column(scale=1, min_width=320):
            problem = gr.HTML("", elem_id="continue-banner", elem_classes="graft-slot", padding=False)
            answer = gr.Textbox(label="Continuation", lines=6, max_lines=14, interactive=False, buttons=["copy"])
            with gr.Accordion("What happened", open=True):
                happened = gr.HTML(look.empty("Continue a text to see the tokens and the time."), padding=False)
    gr.Examples([[example] for example in EXAMPLES], [text], label="Examples", cache_examples=False)
    inputs, outputs = [text, temperature, budget, seed], [problem, answer, happened]
    look.streams(go, stop, [go.click], page.go_on, inputs, outputs, api_name="continue")


def _surprise_tab(page: Page) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=320):
            text = gr.Textbox(label="Text", lines=8, max_lines=16, placeholder="Paste a text …")
            go = gr.Button("Look", variant="primary")
        with gr.Column(scale=1, min_width=320):
            problem = gr.HTML("", elem_id="surprise-banner", elem_classes="graft-slot", padding=False)
            facts = gr.HTML("", padding=False)
            shown = gr.HTML(look.empty("The text appears here, its unexpected tokens dark."), padding=False)
    gr.Examples([[example + "."] for example in EXAMPLES], [text], label="Examples", cache_examples=False)
    go.click(page.surprise, [text], [problem, facts, shown], api_name="surprise")


def _measure_tab(page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = gr.File(
                label="Documents, .txt or .jsonl",
                file_types=[".txt", ".jsonl"],
                height=110,
                elem_classes="graft-file",
            )
            gr.Markdown(f"A .txt file's documents are its paragraphs; at most {DOCUMENTS} documents.")
            go = gr.Button("Measure", variant="primary")
            sample = gr.Button("Try 60 shipped sentences")
        with gr.Column(scale=2, min_width=420):
            problem = gr.HTML("", elem_id="measure-banner", elem_classes="graft-slot", padding=False)
            summary = gr.HTML(look.empty("Bits per byte and the least expected documents appear here."), padding=False)
            plot = gr.HTML("", elem_classes="graft-slot", padding=False)
            download = gr.DownloadButton("Download report", visible=False)
    metrics = gr.Dataframe(
        headers=["metric", "value", "95 % interval", "n", "meaning"],
        datatype=["str", "str", "str", "number", "str"],
        label="Metrics",
        interactive=False,
        wrap=True,
        visible=False,
        column_widths=["20%", "12%", "18%", "8%", "42%"],
    )
    worst = gr.Dataframe(
        headers=["bits per byte", "tokens", "document"],
        datatype=["number", "number", "str"],
        label="Least expected",
        interactive=False,
        wrap=True,
        visible=False,
        column_widths=["14%", "10%", "76%"],
    )
    outputs = [problem, summary, metrics, plot, worst, download]

    go.click(
        lambda given: look.report_shown(page.measure(given), "Nothing was measured."),
        [file],
        outputs,
        api_name="measure",
    )
    sample.click(
        lambda: look.report_shown(page.measure_sample(), "Nothing was measured."),
        None,
        outputs,
        api_name="measure_sample",
    )
