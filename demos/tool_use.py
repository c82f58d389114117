"""The tool-use demo: a question is worked on step by step, tools are found and made, calls are scored.

`build(pipeline)` takes any `FunctionCallPipeline`; its model answers, or a recording does, whose tools run all the
same. It also takes a trained `ToolRetriever`, which then finds the tools. Handlers are plain functions of the page's
values, so tests call them directly. Code runs in the sandbox alone, whose isolation is always shown.
"""

from __future__ import annotations

import html
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from apps.tool_use import ToolExample, ToolUseEvaluator, load_data, picture, recorded
from apps.tool_use.executors import Sandboxed, Simulated
from apps.tool_use.executors.observation import Executor
from apps.tool_use.methods.latm import Example, ToolMaker, ToolUser, parse_examples
from apps.tool_use.pipeline import FunctionCallPipeline, ToolUseConfig, ToolUsePipeline
from apps.tool_use.retriever import CARD, ToolRetriever
from apps.tool_use.samples import TOOLS
from apps.tool_use.spec import ToolSpec, as_spec, tools_of
from apps.tool_use.tool_store import MadeTool
from apps.tool_use.trace import ToolEvent, Trace
from core.config.files import read_json
from core.data.rows import BadRows
from core.data.rows import jsonl as json_lines
from core.errors import AppInputError, CheckpointError, DataError, GraftError
from core.execution import Sandbox
from demos import look
from demos.finding import Finder

RECORDED, LOADED = "a recording", "the loaded model"
SAMPLE_TOOLS = json.dumps([as_spec(tool).to_chat()["function"] for tool in TOOLS], indent=1)
SAMPLE_SOURCE = Path(recorded.samples.__file__).read_text(encoding="utf-8")
ROWS_SCORED, SHORT = 5000, 1024
OTHERS = {"RewritePipeline": "rewrites questions", "BridgePipeline": "writes code into its answers"}
"""Models of this app that neither call tools nor find them, and what they do."""
Shown = tuple[str, str, str, str, str | None]
"""Banner, cards, tree, what happened, the trace as a file."""


class Page:
    """The handlers of one page, around one pipeline, and a trained retriever where there is one."""

    def __init__(self, pipeline: FunctionCallPipeline, retriever: ToolRetriever | None = None) -> None:
        self.pipeline, self.finder = pipeline, Finder(retriever)
        self.made: MadeTool | None = None

    # ---- a question --------------------------------------------------------------------------------------------

    def run(
        self,
        question: str,
        speaker: str,
        strategy: str,
        tools: str,
        source: str,
        budget: float = 30,
        offered: float = 4,
    ) -> Iterator[Shown]:
        """Work on a question, showing every event as it happens."""
        yield "", look.empty("Working …"), "", "", None
        executor: Any = None
        try:
            if not question or not question.strip():
                raise AppInputError("there is no question", hint="write one, or choose an example")
            if speaker == RECORDED:
                run = recorded.run_of(question)
                executor, engine, tokenizer = recorded.executor(), recorded.engine(run), None
                config = ToolUseConfig(strategy=run.strategy, most=None)  # type: ignore[arg-type]
            else:
                specs = best(tools_of(tools), question, max(1, int(offered or 1)))
                executor, engine, tokenizer = self._executor(specs, source), self._engine(), self.pipeline.tokenizer
                config = ToolUseConfig(
                    template=self.pipeline.config.template, form=self.pipeline.config.form, strategy=strategy,  # type: ignore[arg-type]
                    max_calls=max(1, int(budget or 1)), max_new_tokens=128, most=4 if strategy == "single" else 1,
                )  # fmt: skip
            pipeline = ToolUsePipeline(engine, tokenizer, config, executor=executor)
            yield from self._shown(pipeline.stream(question), executor)
        except GraftError as error:
            yield look.banner(error), look.empty("It did not get this far."), "", "", None
        finally:
            if executor is not None:
                executor.close()

    @staticmethod
    def load(upload: str | None) -> tuple[str, Any, Any]:
        """(banner, tools, source) of an uploaded file of tools; without a file the samples, which the sandbox runs.

        A file that holds no tools changes nothing.
        """
        if not upload:
            return "", SAMPLE_TOOLS, SAMPLE_SOURCE
        try:
            text = Path(upload).read_bytes().decode("utf-8")
            tools_of(text)
        except UnicodeDecodeError:
            problem = DataError("the file is no text in UTF-8", file=Path(upload).name)
            return look.banner(problem), gr.skip(), gr.skip()
        except GraftError as error:
            return look.banner(error), gr.skip(), gr.skip()
        return "", text, ""

    def replay(self, upload: str | None) -> Iterator[Shown]:
        """Show a trace again, exactly as it was."""
        try:
            if not upload:
                raise AppInputError("there is no trace", hint="upload the JSON of an earlier run")
            yield from self._shown(Trace.load(upload).replay(), None)
        except GraftError as error:
            yield look.banner(error), look.empty("It did not get this far."), "", "", None

    def _shown(self, events: Iterator[Any], executor: Any) -> Iterator[Shown]:
        seen: list[ToolEvent] = []
        for event in events:
            seen.append(event)
            drawn = picture.tree(event.root) if event.root is not None and event.root.children else ""
            if event.kind != "done":
                yield "", picture.cards(seen), drawn + picture.legend(), "", None
                continue
            meta = event.result.meta
            tiles = look.facts(
                {
                    "ended by": meta["finish"].replace("_", " "),
                    "model calls": str(meta["model_calls"]),
                    "tool calls": str(meta["tool_calls"]),
                    "ms": f"{event.t_ms:.0f}",
                    "sandbox": executor.box.level if isinstance(executor, Sandboxed) else "–",
                }
            )
            file = Path(tempfile.mkdtemp(prefix="graft-trace-")) / "trace.json"
            Trace.from_dict(json.loads(json.dumps(meta["trace"]))).save(file)
            happened = tiles + picture.prompts(meta["exchanges"])
            yield "", picture.cards(seen), drawn + picture.legend(), happened, str(file)

    def _engine(self) -> Any:
        """The loaded model with a kept prefix; whatever else plays the model as it is."""
        from core.inference.engines.hf import HfEngine
        from core.inference.engines.prefix import PrefixEngine

        engine = self.pipeline.engine
        return PrefixEngine(engine.model, engine.tokenizer) if type(engine) is HfEngine else engine

    def _executor(self, specs: list[ToolSpec], source: str) -> Executor:
        """The sandbox where there is source, else the model plays the tools."""
        if source and source.strip():
            return Sandboxed(source, specs, timeout_s=5)
        engine, tokenizer = self._engine(), self.pipeline.tokenizer
        player = ToolUsePipeline(engine, tokenizer, ToolUseConfig(max_new_tokens=96))
        return Simulated(player.complete, specs)

    # ---- making tools ------------------------------------------------------------------------------------------

    def make(self, speaker: str, task: str, train: str, tests: str) -> Iterator[tuple[str, str]]:
        """(banner, attempts) while a tool is made and its tests turn green."""
        self.made, shown = None, ""
        try:
            examples, checks = parse_examples(train), parse_examples(tests)
            maker = ToolMaker(self._speaker(speaker, recorded.RecordedMaker()), speaker, timeout_s=2)
            making = maker.make("made_tool", task, examples, checks)
            yield "", look.empty("Making …")
            while True:
                try:
                    attempt = next(making)
                except StopIteration as done:
                    self.made = done.value
                    break
                shown += picture.attempt(attempt, [check.question for check in checks])
                yield "", shown
            passed = {"tests passed": f"{len(checks)} of {len(checks)}", "hash": self.made.hash[:8]}
            yield "", shown + look.facts(passed)
        except GraftError as error:
            yield look.banner(error), shown

    def ask(self, speaker: str, question: str) -> tuple[str, str]:
        """(banner, call and result) of a question that the small model answers with the made tool."""
        try:
            if self.made is None:
                raise AppInputError("there is no tool yet", hint="make one first")
            if not question or not question.strip():
                raise AppInputError("there is no question")
            with ToolUser(self._speaker(speaker, recorded.small), self.made) as user:
                code, tried = user.use(question)
            value = tried.error or json.dumps(tried.value, ensure_ascii=False)
            tiles = look.facts({"ans": value, "ms in the sandbox": f"{tried.seconds * 1e3:.1f}"})
            return "", f'{tiles}<pre class="graft-prompt">{html.escape(code)}</pre>'
        except GraftError as error:
            return look.banner(error), ""

    def _speaker(self, speaker: str, recording: Any) -> Any:
        if speaker == RECORDED:
            return recording
        config = ToolUseConfig(max_new_tokens=256)
        return ToolUsePipeline(self._engine(), self.pipeline.tokenizer, config).complete

    # ---- scoring -----------------------------------------------------------------------------------------------

    def evaluate(self, upload: str | None) -> tuple[str, str, list[list[Any]], str, list[list[Any]], str | None]:
        """(banner, summary, metric rows, plot, error rows, archive) of a JSONL of rows with predictions."""
        start = time.perf_counter()
        try:
            if not upload:
                hint = 'upload JSONL: {"query", "tools", "calls" or "expected", "category"?, "prediction"}'
                raise AppInputError("nothing to score yet", hint=hint)
            examples, predictions = self._rows(Path(upload))
            report = ToolUseEvaluator(form=self.pipeline.config.form).score(predictions, examples)
        except GraftError as error:
            return look.banner(error), "", [], "", [], None
        groups: dict[str, list[float]] = {}
        for example, row in zip(examples, report.rows):
            groups.setdefault(example.category, []).append(row["ast_accuracy"])
        plot = picture.bars({name: (sum(v) / len(v), len(v)) for name, v in sorted(groups.items())})
        metrics = [[name, str(metric), metric.n] for name, metric in report.metrics.items()]
        errors = [[kind, count] for kind, count in report.signature["errors"].items()]
        tiles = {"rows": str(len(examples)), "seconds": f"{time.perf_counter() - start:.1f}"}
        return "", look.facts(tiles), metrics, plot, errors, look.archive(report)

    @staticmethod
    def _rows(path: Path) -> tuple[list[ToolExample], list[str]]:
        examples = load_data(path, "jsonl", limit=ROWS_SCORED + 1)
        if len(examples) > ROWS_SCORED:
            hint = "graft eval tool_use --data … --predictions …"
            raise AppInputError(f"this page scores at most {ROWS_SCORED} rows", hint=hint)
        predictions = []
        for number, row in json_lines(path, BadRows("raise")):
            if not isinstance(row.get("prediction"), str):
                raise DataError("the row has no prediction", file=path.name, line=number, field="prediction")
            predictions.append(row["prediction"])
        return examples, predictions


def best(tools: list[ToolSpec], question: str, count: int) -> list[ToolSpec]:
    """The tools that fit the question best by their words, in their own order; all when there are no more."""
    found = {hit.tool.name for hit in ToolRetriever(tools)(question, k=count)} if len(tools) > count else set()
    chosen = [tool for tool in tools if tool.name in found] if found else tools
    return chosen[:count]


def opened(path: str) -> FunctionCallPipeline | ToolRetriever:
    """The model of a run or a folder: one that calls tools, or one that finds them.

    Raises:
        CheckpointError: a model that does neither.
    """
    folders = [Path(path).expanduser() / "model", Path(path).expanduser()]
    card: dict[str, Any] = next((read_json(f / CARD) for f in folders if (f / CARD).is_file()), {})
    kind = str(card.get("class")).rpartition(":")[2]
    if kind in OTHERS:
        hint = "this page takes models that call tools and retrievers; docs/tool_use.md says how to use this one"
        raise CheckpointError(f"this model {OTHERS[kind]}, it calls and finds no tools", where=path, hint=hint)
    if kind == "ToolRetriever" or any((f / "modules.json").is_file() for f in folders):
        return ToolRetriever.from_pretrained(path)
    return FunctionCallPipeline.from_pretrained(path)


def describe(pipeline: FunctionCallPipeline) -> list[str]:
    """What is loaded, and how code is held."""
    best = next((probe for probe in Sandbox.probe() if probe.available), None)
    held = f"sandbox: {best.level} ({best.name})" if best else "no sandbox: apt-get install bubblewrap"
    return [*look.model_chips(pipeline), held]


def build(pipeline: FunctionCallPipeline | ToolRetriever) -> gr.Blocks:
    """The page. Beside a retriever the model that ships makes the calls."""
    if isinstance(pipeline, ToolRetriever):
        page = Page(FunctionCallPipeline.from_pretrained("embedded"), pipeline)
    else:
        page = Page(pipeline)
    with gr.Blocks(title="graft tool use", analytics_enabled=False) as blocks:
        line = "Work with tools step by step; find them, make them, and score calls."
        gr.HTML(look.header("tool use", line, [*page.finder.chips(), *describe(page.pipeline)]), padding=False)
        with gr.Tabs(selected="run" if page.pipeline is pipeline else "retrieval"):
            _tabs(page)
    return blocks


def _tabs(page: Page) -> None:
    with gr.Tab("Run", id="run"):
        _run_tab(page)
    with gr.Tab("Retrieval", id="retrieval"):
        page.finder.tab()
    with gr.Tab("Tool maker", id="maker"):
        _make_tab(page)
    with gr.Tab("Evaluate", id="evaluate"):
        _evaluate_tab(page)


def _run_tab(page: Page) -> None:
    short = (getattr(page.pipeline.engine, "context", None) or SHORT) < SHORT
    tree = gr.HTML("", elem_id="run-tree", padding=False)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            question = gr.Textbox(recorded.RUNS[1].query, label="Question", lines=2)
            speaker = gr.Radio([RECORDED, LOADED], value=RECORDED, label="Answered by")
            strategy = gr.Radio(
                ["react", "dfsdt", "single"], value="single" if short else "react", label="Strategy of the loaded model"
            )
            go, stop = look.go_and_stop("Run")
            with gr.Accordion("Tools", open=False):
                given = gr.File(label="Upload tools, or OpenAPI 3", height=92,
                                file_types=[".json", ".yaml", ".yml"], elem_classes="graft-file")  # fmt: skip
                tools = gr.Code(
                    SAMPLE_TOOLS, language="json", label="Tools as JSON, or OpenAPI 3", lines=10, max_lines=14
                )
                source = gr.Code(SAMPLE_SOURCE, language="python", lines=8, max_lines=12,
                                 label="Their Python (none: the model plays)")  # fmt: skip
                offered = gr.Slider(
                    1, 20, 1 if short else 4, step=1, label="Tools offered", info="those that fit the question best"
                )
                budget = gr.Slider(1, 100, 12, step=1, label="Model calls at most")
            with gr.Accordion("Replay a trace", open=False):
                upload = gr.File(label="Trace of a run", file_types=[".json"], height=92, elem_classes="graft-file")
                again = gr.Button("Replay")
            gr.Examples([[run.query] for run in recorded.RUNS], [question], label="Recorded questions")
        with gr.Column(scale=3, min_width=420):
            banner = gr.HTML("", elem_id="run-banner", elem_classes="graft-slot", padding=False)
            trace = gr.HTML(look.empty("Thoughts, calls and observations appear here as they happen."), padding=False)
            with gr.Accordion("What happened", open=False):
                happened = gr.HTML("", padding=False)
            file = gr.DownloadButton("Download the trace", visible=False)
    outputs = [banner, trace, tree, happened, file]

    def shown(*values: Any) -> Iterator[list[Any]]:
        yield from _with_download(page.run(*values))

    def replayed(given: str | None) -> Iterator[list[Any]]:
        yield from _with_download(page.replay(given))

    inputs = [question, speaker, strategy, tools, source, budget, offered]
    given.change(page.load, given, [banner, tools, source], api_name="load")
    look.streams(go, stop, [go.click], shown, inputs, outputs, api_name="run")
    again.click(replayed, upload, outputs, show_progress="hidden", api_name="replay")


def _with_download(shown: Iterator[Shown]) -> Iterator[list[Any]]:
    for *parts, path in shown:
        yield [*parts, gr.DownloadButton(value=path, visible=path is not None)]


def _make_tab(page: Page) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            speaker = gr.Radio([RECORDED, LOADED], value=RECORDED, label="Made and used by")
            task = gr.Textbox(recorded.TASK, label="Task")
            train = gr.Textbox(_lines(recorded.TRAIN), label="Three to make it from", lines=3)
            tests = gr.Textbox(_lines(recorded.TESTS), label="Three to test it with", lines=3)
            go, stop = look.go_and_stop("Make the tool")
            question = gr.Textbox("From 3 May to 9 August 2023.", label="Ask with the small model")
            ask = gr.Button("Ask")
            answer = gr.HTML("", padding=False)
        with gr.Column(scale=3, min_width=420):
            banner = gr.HTML("", elem_classes="graft-slot", padding=False)
            attempts = gr.HTML(look.empty("Every try of the maker, and its tests."), padding=False)
    making = [speaker, task, train, tests]
    look.streams(go, stop, [go.click], page.make, making, [banner, attempts], api_name="make")
    ask.click(page.ask, [speaker, question], [banner, answer], api_name="ask")


def _evaluate_tab(page: Page) -> None:
    with gr.Row():
        upload = gr.File(
            label="JSONL of rows with predictions", file_types=[".jsonl"], height=92, elem_classes="graft-file"
        )
        go = gr.Button("Score", variant="primary")
    banner = gr.HTML("", elem_classes="graft-slot", padding=False)
    summary = gr.HTML(look.empty("Accuracy by category and kinds of error appear here."), padding=False)
    plot = gr.HTML("", padding=False)
    metrics = gr.Dataframe(headers=["metric", "value", "n"], label="Metrics", interactive=False, visible=False)
    errors = gr.Dataframe(headers=["kind of error", "rows"], label="Errors", interactive=False, visible=False)
    download = gr.DownloadButton("Download report", visible=False)

    def evaluate(file: str | None) -> list[Any]:
        return look.report_shown(page.evaluate(file))

    go.click(evaluate, upload, [banner, summary, metrics, plot, errors, download], api_name="evaluate")


def _lines(examples: tuple[Example, ...]) -> str:
    return "\n".join(f"{example.question} => {example.answer}" for example in examples)
