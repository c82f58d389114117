"""The embeddings demo: compare two texts token by token, search, look at texts on a plane, score a file.

`build(pipeline)` takes any `EmbeddingPipeline`. Handlers are plain functions of the page's values, so tests call them
directly; an error of the library is shown in the library's words. BM25 answers beside the model wherever one searches.
"""

from __future__ import annotations

import html
import time
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from apps.embeddings import EmbeddingEvaluator, EmbeddingPipeline, load_data
from apps.embeddings.everyday import TASK, entries
from apps.embeddings.explain import Share, contributions, latent_usage, plane
from apps.embeddings.prompts import prompt_of
from core.errors import AppInputError, DataError, GraftError, UnsupportedError
from core.retrieval.words import plain
from demos import look

EXAMPLES = [
    ["My wallet was stolen, how do I stop my card?", "A lost card is blocked at once in the app under Cards."],
    ["How long does rice cook?", "The night bus leaves every half hour from the main station."],
    ["Can I return a jacket?", "May I send the shoes back?"],
]
ROWS = 2000
"""Lines of an upload that the page embeds; the command line takes any number."""
WRITTEN_OUT = 24
"""Most texts of a map that stand beside their points."""
COLOURS = ("#0f766e", "#b45309", "#4338ca", "#be123c", "#4d7c0f", "#0369a1", "#7e22ce", "#525252", "#111827", "#15803d")


class Page:
    """The handlers of one page, around one pipeline."""

    def __init__(self, pipeline: EmbeddingPipeline) -> None:
        self.pipeline = pipeline
        self.corpus: list[str] = []
        self.index: Any = None
        self.words: Any = None

    # ---- compare -----------------------------------------------------------------------------------------------

    def compare(self, first: str, second: str) -> tuple[str, str]:
        """(banner, both texts with each token's share of their similarity)."""
        try:
            if not (first or "").strip() or not (second or "").strip():
                raise AppInputError("two texts are needed", hint="fill both boxes")
            start = time.perf_counter()
            similarity = float(self.pipeline.similarity([first], [second])[0, 0])
            facts = look.facts({"cosine": f"{similarity:.3f}", **self._spent([first, second], "", start)})
        except GraftError as error:
            return look.banner(error), ""
        try:
            parts = [self._heat(first, second), self._heat(second, first)]
        except UnsupportedError as error:
            return look.banner(error), facts
        usage = latent_usage(self.pipeline, [first, second])
        return "", facts + "".join(parts) + (_usage(usage) if usage is not None else "")

    def _spent(self, texts: list[str], prompt: str, start: float) -> dict[str, str]:
        """Tokens read, time and speed of an encoding that began at `start`."""
        seconds = time.perf_counter() - start
        lengths = [len(ids) for ids in self.pipeline.tokenizer([prompt + text for text in texts])["input_ids"]]
        count = sum(min(length, self.pipeline.max_length) for length in lengths)
        return {"tokens": str(count), "ms": f"{seconds * 1e3:.0f}", "tokens/s": f"{count / max(seconds, 1e-9):,.0f}"}

    def _heat(self, text: str, other: str) -> str:
        shares = contributions(self.pipeline, text, other)
        return f'<div class="graft-label">Share of each token in the cosine</div>{heat(text, shares)}'

    # ---- search ------------------------------------------------------------------------------------------------

    def load(self, file: str | None) -> tuple[str, str]:
        """(banner, what is loaded): the lines of a file, or the answers that ship."""
        try:
            texts = _lines(file) if file else [entry.answer for entry in entries()]
            start = time.perf_counter()
            self.corpus, self.words = texts, self.pipeline.index(texts, structure="bm25")
            self.index = self.pipeline.index(texts)
            seconds = time.perf_counter() - start
            tiles = {"texts": str(len(texts)), "dimensions": str(self.index.dimension), "seconds": f"{seconds:.1f}"}
            return "", look.facts(tiles)
        except GraftError as error:
            return look.banner(error), ""

    def search(self, query: str, count: int = 5) -> tuple[str, str, str, str]:
        """(banner, hits of the model, hits of BM25, what happened)."""
        try:
            if not (query or "").strip():
                raise AppInputError("nothing to search for", hint="type a question")
            if self.index is None:
                self.load(None)
            start = time.perf_counter()
            near = self.pipeline.search(query, int(count), index=self.index, task=TASK)
            prompt = prompt_of(self.pipeline.config.template, TASK)
            tiles = look.facts(self._spent([query], prompt, start))
            sent = f'<pre class="graft-prompt">{html.escape(prompt)}<mark>{html.escape(query)}</mark></pre>'
            happened = f'{tiles}<div class="graft-label">Text as encoded, the question marked</div>{sent}'
            lexical = self.pipeline.search(query, int(count), index=self.words)
            return "", self._hits(query, near, "The model"), self._hits(query, lexical, "BM25"), happened
        except GraftError as error:
            return look.banner(error), "", "", ""

    def _hits(self, query: str, hits: list[Any], title: str) -> str:
        asked = set(plain(query))
        rows = []
        for rank, hit in enumerate(hits, 1):
            text = self.corpus[int(hit.id)]
            words = "".join(
                f"<mark>{html.escape(part)}</mark>" if plain(part) and plain(part)[0] in asked else html.escape(part)
                for part in _pieces(text)
            )
            rows.append(f"<div>{rank}. <b>{hit.score:.3f}</b> {words}</div>")
        found = "".join(rows) or "<div>no document shares a word with the query</div>"
        return f'<div class="graft-label">{html.escape(title)}</div><div class="graft-prompt">{found}</div>'

    # ---- map ---------------------------------------------------------------------------------------------------

    def map(self, file: str | None) -> tuple[str, str]:
        """(banner, texts on the plane of largest variance, coloured by label)."""
        try:
            if file:
                examples = load_data(file, limit=ROWS)
            else:
                examples = load_data(reader="embedded_labels")
            texts, labels = [e.text for e in examples], [e.label or "" for e in examples]
            if len(texts) < 3:
                raise DataError("a map needs three texts or more", got=len(texts))
            places, share = plane(self.pipeline(texts))
            return "", scatter(
                places, labels, texts, f"{len(texts)} texts; the plane shows {share:.0%} of the variance"
            )
        except GraftError as error:
            return look.banner(error), ""

    # ---- evaluate ----------------------------------------------------------------------------------------------

    def evaluate(self, file: str | None, other: str = "") -> tuple[str, str, list[list[Any]], str, list, str | None]:
        """(banner, summary, metric rows, histogram, worst rows, report archive); with the figures of another model.

        Examples are those of a JSONL file, or the held-out questions that ship. `other`: a path, "package:NAME".
        """
        try:
            examples = load_data(file, limit=ROWS) if file else load_data(reader="embedded", split="test")
            start = time.perf_counter()
            report = EmbeddingEvaluator().score(self.pipeline.predict(examples), examples)
            beside = None
            if other.strip():
                with EmbeddingPipeline.from_pretrained(other.strip()) as second:
                    beside = EmbeddingEvaluator(bootstrap=0).score(second.predict(examples), examples)
            rows: list[list[Any]] = [
                [name, str(m), "" if beside is None else f"{beside.value(name):.2f}", m.n]
                for name, m in report.metrics.items()
                if m.value is not None
            ]
            values = [row["score"] for row in report.rows if "score" in row]
            plot = look.histogram(values, low=0, high=100, bins=20, title=f"Score of each row ({len(values)})")
            named = {str(e.id): e.text for e in examples if e.kind == "document"}
            worst = [[row["score"], row["input"], _wanted(row["reference"], named)] for row in report.failures]
            tiles = {report.primary: f"{report.value():.2f}", "scored": str(report.metrics[report.primary].n)}
            summary = look.facts({**tiles, "seconds": f"{time.perf_counter() - start:.1f}"})
            return "", summary, rows, plot if values else "", worst, look.archive(report)
        except GraftError as error:
            return look.banner(error), "", [], "", [], None


def _wanted(reference: Any, named: dict[str, str]) -> str:
    """The texts of relevant documents, or what else was wanted."""
    names = reference if isinstance(reference, list) else [reference]
    return "; ".join(named.get(str(name), str(name)) for name in names)


def _lines(file: str) -> list[str]:
    try:
        texts = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error.reason}", file=Path(file).name) from error
    if not texts or len(texts) > ROWS:
        raise DataError(f"{len(texts)} lines; the page takes 1 to {ROWS}", file=Path(file).name)
    return texts


def _pieces(text: str) -> list[str]:
    import re

    return re.findall(r"\w+|\W+", text)


def heat(text: str, shares: list[Share]) -> str:
    """The text, each token's background as strong as its share; teal adds to the cosine, amber takes away."""
    strongest = max((abs(share.value) for share in shares), default=0.0) or 1.0
    parts, done = [], 0
    for share in shares:
        if share.end <= done:
            continue
        start = max(share.start, done)
        parts.append(html.escape(text[done:start]))
        colour = "13,148,136" if share.value >= 0 else "217,119,6"
        strength = abs(share.value) / strongest
        parts.append(
            f'<span style="background:rgba({colour},{0.75 * strength:.2f})" title="{share.value:+.3f}">'
            f"{html.escape(text[start : share.end])}</span>"
        )
        done = share.end
    return f'<div class="graft-prompt">{"".join(parts)}{html.escape(text[done:])}</div>'


def _usage(usage: np.ndarray) -> str:
    """A bar for each latent: how much of each text's attention it gets."""
    count, width, high = usage.shape[1], 640, 46
    step, top, rows = width / count, float(usage.max()) or 1.0, []
    for row, colour in zip(usage, ("#0f766e", "#b45309")):
        bars = "".join(
            f'<rect x="{i * step:.2f}" y="{high - value / top * high:.1f}" width="{max(step - 0.3, 0.4):.2f}"'
            f' height="{value / top * high:.1f}" fill="{colour}"><title>latent {i}: {value:.2%}</title></rect>'
            for i, value in enumerate(row)
        )
        rows.append(f'<svg viewBox="0 0 {width} {high}" role="img" aria-label="latent usage">{bars}</svg>')
    return (
        f'<div class="graft-plot"><div class="graft-label">Attention that each latent gets</div>{"".join(rows)}</div>'
    )


def scatter(places: np.ndarray, labels: list[str], texts: list[str], title: str) -> str:
    """Points on a plane as SVG, a colour for each of the ten most frequent labels; each point tells its text."""
    width, height, edge = 720, 420, 24
    low, high = places.min(0), places.max(0)
    spread = np.where(high - low > 0, high - low, 1)
    unit = (places - low) / spread
    names = sorted(set(labels), key=lambda name: (-labels.count(name), name))[: len(COLOURS)]
    colour = dict(zip(names, COLOURS))
    points = []
    for (x, y), label, text in zip(unit, labels, texts):
        left, top = edge + x * (width - 2 * edge), height - edge - y * (height - 2 * edge)
        points.append(
            f'<circle cx="{left:.1f}" cy="{top:.1f}" r="5" fill="{colour.get(label, "#a3a3a3")}" fill-opacity=".8">'
            f"<title>{html.escape(text[:160])}</title></circle>"
        )
        if len(texts) <= WRITTEN_OUT:
            beside = f'x="{left + 9:.1f}"' if x < 0.6 else f'x="{left - 9:.1f}" text-anchor="end"'
            shown = text if len(text) <= 40 else f"{text[:39]}…"
            points.append(f'<text {beside} y="{top + 4:.1f}">{html.escape(shown)}</text>')
    legend = "".join(
        f'<span class="graft-chip"><i style="background:{colour[name]}"></i>{html.escape(name or "no label")}</span> '
        for name in names
    )
    return (
        f'<div class="graft-plot"><div class="graft-label">{html.escape(title)}</div><div class="graft-chips">{legend}'
        f'</div><svg viewBox="0 0 {width} {height}" role="img" aria-label="map of texts">{"".join(points)}</svg></div>'
    )


def describe(pipeline: EmbeddingPipeline) -> list[str]:
    """Chips of the header: what is loaded, its size and where it runs."""
    folder = Path(str(pipeline.source.get("path", "in memory")))
    if folder.name in ("model", "merged"):
        run = (folder.parent / "run.json").is_file()
        folder = Path(folder.parent.parent.name, folder.parent.name) if run else Path(folder.parent.name)
    count = sum(p.numel() for p in pipeline.model.parameters())
    mode = getattr(pipeline.model.pooling, "pooling_mode", "latent attention")
    pooling = mode if mode == "latent attention" else f"pooling {mode if isinstance(mode, str) else ', '.join(mode)}"
    name = str(folder) if len(folder.parts) == 2 else folder.name
    return [
        name,
        f"{count / 1e6:.1f}M parameters",
        str(pipeline.model.device),
        f"{pipeline.dimension} dimensions",
        pooling,
    ]


def build(pipeline: EmbeddingPipeline) -> gr.Blocks:
    """The page."""
    page = Page(pipeline)
    with gr.Blocks(title="graft embeddings", analytics_enabled=False) as blocks:
        line = "Compare texts token by token, search beside BM25, see texts on a map, and score."
        gr.HTML(look.header("embeddings", line, describe(pipeline)), padding=False)
        with gr.Tab("Compare", id="compare"):
            with gr.Row():
                first = gr.Textbox(label="First text", lines=3, value=EXAMPLES[0][0])
                second = gr.Textbox(label="Second text", lines=3, value=EXAMPLES[0][1])
            go = gr.Button("Compare", variant="primary")
            problem = gr.HTML("", elem_classes="graft-slot", padding=False)
            shown = gr.HTML(look.empty("Compare two texts to see which tokens bring them together."), padding=False)
            gr.Examples(EXAMPLES, [first, second], label="Examples", cache_examples=False)
            go.click(page.compare, [first, second], [problem, shown], api_name="compare", show_progress="hidden")
        with gr.Tab("Search", id="search"):
            _search_tab(page)
        with gr.Tab("Map", id="map"):
            file = gr.File(
                label="JSONL with text and label; empty takes the questions that ship",
                file_types=[".jsonl"],
                height=92,
                elem_classes="graft-file",
            )
            draw = gr.Button("Draw", variant="primary")
            problem = gr.HTML("", elem_classes="graft-slot", padding=False)
            picture = gr.HTML(look.empty("Draw to see which texts lie together."), padding=False)
            draw.click(page.map, [file], [problem, picture], api_name="map")
        with gr.Tab("Evaluate", id="evaluate"):
            _evaluate_tab(page)
    return blocks


def _evaluate_tab(page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            file = gr.File(
                label="JSONL of examples",
                file_types=[".jsonl"],
                height=92,
                elem_classes="graft-file",
            )
            gr.Markdown("Without a file the held-out questions that ship are scored.")
            other = gr.Textbox(
                label="Second model", placeholder="a folder or package:NAME", info="scored beside this one"
            )
            go = gr.Button("Score", variant="primary")
        with gr.Column(scale=2, min_width=420):
            problem = gr.HTML("", elem_id="evaluate-banner", elem_classes="graft-slot", padding=False)
            summary = gr.HTML(look.empty("Metrics, and the rows that went worst, appear here."), padding=False)
            plot = gr.HTML("", elem_classes="graft-slot", padding=False)
            download = gr.DownloadButton("Download report", visible=False)
    heads, kinds = ["metric", "this model", "second model", "n"], ["str", "str", "str", "number"]
    metrics = gr.Dataframe(headers=heads, datatype=kinds, label="Metrics", interactive=False, visible=False)
    heads, kinds = ["score", "text", "wanted"], ["number", "str", "str"]
    worst = gr.Dataframe(
        headers=heads, datatype=kinds, label="Worst", interactive=False, wrap=True, visible=False,
        column_widths=["10%", "40%", "50%"],
    )  # fmt: skip
    go.click(
        lambda *given: look.report_shown(page.evaluate(*given)),
        [file, other],
        [problem, summary, metrics, plot, worst, download],
        api_name="evaluate",
    )


def _search_tab(page: Page) -> None:
    with gr.Row():
        query = gr.Textbox(label="Question", value="What do I do when I cannot find my bank card?", scale=4)
        count = gr.Slider(1, 20, 5, step=1, label="Hits", scale=1)
    with gr.Row():
        go = gr.Button("Search", variant="primary")
        file = gr.File(label="Own texts, one a line", file_types=[".txt", "text"], height=92, elem_classes="graft-file")
    problem = gr.HTML("", elem_classes="graft-slot", padding=False)
    loaded = gr.HTML("", padding=False)
    with gr.Row():
        mine = gr.HTML(look.empty("The model's hits."), padding=False)
        lexical = gr.HTML(look.empty("BM25's hits, words of the question marked."), padding=False)
    with gr.Accordion("What happened", open=False):
        happened = gr.HTML(look.empty("Search to see the text as it was encoded."), padding=False)
    inputs, outputs = [query, count], [problem, mine, lexical, happened]
    gr.on([go.click, query.submit], page.search, inputs, outputs, api_name="search", show_progress="hidden")
    file.change(page.load, [file], [problem, loaded], api_visibility="private")
