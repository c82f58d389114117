"""The translation demo: translate and see what happened, or score a file of translations.

`build(pipeline)` takes any `TranslationPipeline`, on a run, on the shipped model or on a recording. Handlers are plain
functions of the page's values, so tests call them directly; an error of the library is shown in the library's words.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from apps.translation import TranslationEvaluator, TranslationPipeline, load_data
from apps.translation.example import TranslationExample, example_from
from apps.translation.languages import LANGUAGES
from apps.translation.prompts import uses_terms
from apps.translation.reading import json_rows, lines
from core.errors import AppInputError, DataError, GraftError
from core.inference.request import Result
from demos import look

EXAMPLES = [
    ["Der Hund schläft im Garten. Der alte Lehrer singt im kleinen Laden.", "de", "en"],
    ["Diese Männer können meinen Apfel kaufen.", "de", "en"],
    ["Letzte Woche ist er in kleine Läden gelaufen.", "de", "en"],
]
ROWS_TRANSLATED = 200
"""How many rows of an upload the page translates itself; files of translations may be of any length."""


class Page:
    """The handlers of one page, around one pipeline."""

    def __init__(self, pipeline: TranslationPipeline) -> None:
        self.pipeline = pipeline

    def translate(
        self,
        text: str,
        src: str,
        tgt: str,
        terms: str = "",
        by_sentence: bool = True,
        beams: int = 1,
        max_new_tokens: int = 128,
    ) -> Iterator[tuple[str, str, str]]:
        """(banner, translation, what happened), again at every step of the stream."""
        yield "", "", look.empty("Translating …")
        settings: dict[str, Any] = {
            "src": src,
            "tgt": tgt,
            "terms": None,
            "split": "sentences" if by_sentence else "none",
            "max_new_tokens": int(max_new_tokens),
        }
        try:
            settings["terms"] = parse_terms(terms)
            start, so_far, done = time.perf_counter(), "", Result("")
            if int(beams) == 1:
                for event in self.pipeline.stream(text or "", **settings):
                    if isinstance(event.result, Result):
                        done = event.result
                        continue
                    so_far += event.text
                    yield "", so_far, look.empty(f"{event.tokens} tokens in {event.t_ms:.0f} ms")
            else:
                done = self.pipeline(text or "", beams=int(beams), **settings)
        except GraftError as error:
            yield look.banner(error), "", look.empty("Nothing was sent to the model.")
            return
        elapsed = (time.perf_counter() - start) * 1e3
        happened = look.what_happened(done.meta, done.text, elapsed)
        yield look.banner(done.meta["warnings"]), done.text, happened

    def evaluate(
        self, hypotheses: str | None, references: str | None, sources: str | None, rows: str | None, src: str, tgt: str
    ) -> tuple[str, str, list[list[Any]], str, list[list[Any]], str | None]:
        """(banner, summary, metric rows, histogram, worst rows, path of the report archive)."""
        try:
            start = time.perf_counter()
            predictions, examples = self.read_upload(hypotheses, references, sources, rows, src, tgt)
            return self.scored(predictions, examples, start)
        except GraftError as error:
            return look.banner(error), "", [], "", [], None

    def evaluate_sample(self, src: str, tgt: str) -> tuple[str, str, list[list[Any]], str, list[list[Any]], str | None]:
        """Translate held-out sentences that ship with the project, and score the result."""
        try:
            start = time.perf_counter()
            if {src, tgt} != {"de", "en"}:
                raise AppInputError(
                    "the sentences that ship with the project are German and English",
                    hint="choose German → English or English → German, or upload your own",
                )
            examples = load_data(reader="embedded", split="test", src=src, tgt=tgt, limit=50)
            return self.scored(self.translations(examples), examples, start)
        except GraftError as error:
            return look.banner(error), "", [], "", [], None

    def read_upload(
        self, hypotheses: str | None, references: str | None, sources: str | None, rows: str | None, src: str, tgt: str
    ) -> tuple[list[str], list[TranslationExample]]:
        """Predictions and examples of the uploaded files.

        A JSONL row may hold its "prediction" (or "hypothesis"); if no row does, the model of the page translates.
        """
        if rows:
            return self.read_rows(Path(rows), src, tgt)
        if not hypotheses or not references:
            raise AppInputError(
                "nothing to score yet", hint="upload hypotheses and references, one sentence a line, or one JSONL file"
            )
        predictions, wanted = _lines_of(hypotheses), _lines_of(references)
        given = _lines_of(sources) if sources else [""] * len(wanted)
        if len(given) != len(wanted):
            raise DataError(f"{len(given)} sources for {len(wanted)} references", hint="one sentence a line, in order")
        return predictions, [TranslationExample(s, r, src, tgt) for s, r in zip(given, wanted)]

    def read_rows(self, file: Path, src: str, tgt: str) -> tuple[list[str], list[TranslationExample]]:
        """Predictions and examples of a JSONL file."""
        examples, predictions = [], []
        for number, row in json_rows(file, None):
            if isinstance(row, dict):
                row = dict(row)
                predictions.append(row.pop("prediction", row.pop("hypothesis", None)))
            examples.append(example_from(row, src=src, tgt=tgt, file=file.name, line=number))
        given = [text for text in predictions if text is not None]
        if given and len(given) < len(predictions):
            first = predictions.index(None) + 1
            raise DataError("only some rows have a prediction", file=file.name, line=first, field="prediction")
        if given:
            return given, examples
        if len(examples) > ROWS_TRANSLATED:
            raise AppInputError(
                f"{len(examples)} rows without predictions; this page translates at most {ROWS_TRANSLATED}",
                hint="use graft eval on the command line for more",
            )
        return self.translations(examples), examples

    def translations(self, examples: list[TranslationExample]) -> list[str]:
        return [result.text for result in self.pipeline(examples, max_new_tokens=128)]

    def scored(
        self, predictions: list[str], examples: list[TranslationExample], start: float
    ) -> tuple[str, str, list[list[Any]], str, list[list[Any]], str | None]:
        """What the Evaluate tab shows of a report."""
        report = TranslationEvaluator().score(predictions, examples)
        metrics, notes = [], []
        for name, metric in report.metrics.items():
            signature = report.signature.get(name, "")
            if metric.skipped:
                metrics.append([name, "–", "", metric.n, f"skipped: {metric.skipped}"])
                continue
            interval = f"{metric.ci95[0]:.2f} – {metric.ci95[1]:.2f}" if metric.ci95 else ""
            arrow = "" if name == "length_ratio" else "↑" if metric.higher_is_better else "↓"
            value = f"{metric.value:.2f}{metric.unit}"
            metrics.append([f"{name} {arrow}".strip(), value, interval, metric.n, _note(signature)])
        if not any(example.src for example in examples):
            notes.append("no sources were given: over-generation is judged by the references alone")
        target = report.signature.get("off_target", {})
        if target.get("references", 0) > 50:
            notes.append("most references are not in the target language: is the direction right?")
        values = [row["chrf"] for row in report.rows]
        plot = look.histogram(values, low=0, high=100, bins=20, title=f"chrF of each sentence ({len(values)})")
        worst = [[row["chrf"], row["input"], row["reference"], row["prediction"]] for row in report.failures]
        primary = report.metrics[report.primary]
        summary = look.facts(
            {
                "sentences": str(len(values)),
                report.primary.upper(): "–" if primary.value is None else f"{primary.value:.1f}",
                "chrF": f"{report.metrics['chrf'].value:.1f}",
                "seconds": f"{time.perf_counter() - start:.1f}",
            }
        )
        return look.banner(notes), summary, metrics, plot, worst, look.archive(report)


def parse_terms(text: str) -> list[tuple[str, str]]:
    """Glossary lines "source = target". Raises `AppInputError` naming a line that is not one."""
    terms = []
    for number, line in enumerate((text or "").splitlines(), 1):
        if line.strip():
            source, sign, target = (part.strip() for part in line.partition("="))
            if not (source and sign and target):
                raise AppInputError(f"line {number} of the terms is not 'source = target'", where=line)
            terms.append((source, target))
    return terms


def _lines_of(file: str) -> list[str]:
    return [line for _, line in lines(Path(file), None)]


def _note(signature: Any) -> str:
    if isinstance(signature, dict):
        return ", ".join(f"{key}: {value}" for key, value in signature.items())
    return str(signature)


def describe(pipeline: TranslationPipeline) -> list[str]:
    """Chips of the header: what is loaded, its size and where it runs."""
    return [*look.model_chips(pipeline), f"template {pipeline.template.name}"]


def build(pipeline: TranslationPipeline) -> gr.Blocks:
    """The page."""
    page = Page(pipeline)
    choices = sorted((f"{item.name} ({item.code})", item.code) for item in LANGUAGES.values())
    src, tgt = pipeline.config.src_lang or "de", pipeline.config.tgt_lang or "en"
    with gr.Blocks(title="graft translation", analytics_enabled=False) as blocks:
        line = "Translate, see what the model was sent, and score translations."
        gr.HTML(look.header("translation", line, describe(pipeline)), padding=False)
        with gr.Tab("Translate", id="translate"):
            _translate_tab(page, choices, src, tgt)
        with gr.Tab("Evaluate", id="evaluate"):
            _evaluate_tab(page, choices, src, tgt)
    return blocks


def _translate_tab(page: Page, choices: list[tuple[str, str]], src: str, tgt: str) -> None:
    enforced = uses_terms(page.pipeline.template)
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=320):
            with gr.Row():
                source_language = gr.Dropdown(choices, value=src, label="From", min_width=120, scale=5)
                swap = gr.Button("⇄", size="sm", scale=0, elem_classes="graft-swap")
                target_language = gr.Dropdown(choices, value=tgt, label="To", min_width=120, scale=5)
            text = gr.Textbox(label="Text", lines=6, max_lines=14, placeholder="Type or paste a text …", autofocus=True)
            go, stop = look.go_and_stop("Translate")
            with gr.Accordion("Settings", open=False):
                by_sentence = gr.Checkbox(True, label="Sentence by sentence", info="keeps long texts within the model")
                beams = gr.Slider(1, 8, 1, step=1, label="Beams", info="1 streams; more search wider")
                budget = gr.Slider(8, 512, 128, step=8, label="New tokens at most, for each sentence")
                terms = gr.Textbox(
                    label="Terms",
                    lines=2,
                    placeholder="Welle = shaft",
                    info="one source = target a line" + ("" if enforced else "; checked, not enforced"),
                )
        with gr.Column(scale=1, min_width=320):
            problem = gr.HTML("", elem_id="translate-banner", elem_classes="graft-slot", padding=False)
            answer = gr.Textbox(label="Translation", lines=6, max_lines=14, interactive=False, buttons=["copy"])
            with gr.Accordion("What happened", open=True):
                happened = gr.HTML(
                    look.empty("Translate something to see the prompt, the tokens and the time."), padding=False
                )
    gr.Examples(EXAMPLES, [text, source_language, target_language], label="Examples", cache_examples=False)
    inputs = [text, source_language, target_language, terms, by_sentence, beams, budget]
    outputs = [problem, answer, happened]
    look.streams(go, stop, [go.click, text.submit], page.translate, inputs, outputs, api_name="translate")
    swap.click(
        lambda a, b, given, made: (b, a, made or given),
        [source_language, target_language, text, answer],
        [source_language, target_language, text],
        api_visibility="private",
    )


def _evaluate_tab(page: Page, choices: list[tuple[str, str]], src: str, tgt: str) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            with gr.Row():
                source_language = gr.Dropdown(choices, value=src, label="From", min_width=120)
                target_language = gr.Dropdown(choices, value=tgt, label="To", min_width=120)
            with gr.Tab("Text files"):
                hypotheses = gr.File(
                    label="Hypotheses, one a line",
                    file_types=[".txt", ".gz", "text"],
                    height=92,
                    elem_classes="graft-file",
                )
                references = gr.File(
                    label="References, one a line",
                    file_types=[".txt", ".gz", "text"],
                    height=92,
                    elem_classes="graft-file",
                )
                sources = gr.File(
                    label="Sources (optional)", file_types=[".txt", ".gz", "text"], height=92, elem_classes="graft-file"
                )
            with gr.Tab("JSONL"):
                rows = gr.File(
                    label='Rows {"src", "tgt", "prediction"?}',
                    file_types=[".jsonl", ".json"],
                    height=92,
                    elem_classes="graft-file",
                )
                gr.Markdown(
                    f"Rows without a prediction are translated here (at most {ROWS_TRANSLATED}). "
                    "`src_lang` and `tgt_lang` of a row win over the choice above."
                )
            go = gr.Button("Score", variant="primary")
            sample = gr.Button("Try 50 shipped sentences")
        with gr.Column(scale=2, min_width=420):
            problem = gr.HTML("", elem_id="evaluate-banner", elem_classes="graft-slot", padding=False)
            summary = gr.HTML(look.empty("Metrics with intervals and the worst sentences appear here."), padding=False)
            plot = gr.HTML("", elem_classes="graft-slot", padding=False)
            download = gr.DownloadButton("Download report", visible=False)
    metrics = gr.Dataframe(
        headers=["metric", "value", "95 % interval", "n", "signature or reason"],
        datatype=["str", "str", "str", "number", "str"],
        label="Metrics",
        interactive=False,
        wrap=True,
        visible=False,
        column_widths=["16%", "12%", "18%", "8%", "46%"],
    )
    worst = gr.Dataframe(
        headers=["chrF", "source", "reference", "hypothesis"],
        datatype=["number", "str", "str", "str"],
        label="Worst 20 sentences",
        interactive=False,
        wrap=True,
        visible=False,
        column_widths=["8%", "30%", "31%", "31%"],
    )
    outputs = [problem, summary, metrics, plot, worst, download]

    def evaluate(*values: Any) -> list[Any]:
        return look.report_shown(page.evaluate(*values))

    def evaluate_sample(*values: Any) -> list[Any]:
        return look.report_shown(page.evaluate_sample(*values))

    inputs = [hypotheses, references, sources, rows, source_language, target_language]
    go.click(evaluate, inputs, outputs, api_name="evaluate")
    sample.click(evaluate_sample, [source_language, target_language], outputs, api_name="evaluate_sample")
