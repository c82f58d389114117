"""Code in answers: its results carry no loss, and going on behind them costs no second pass.

Rows with code and results are encoded as for training; a result's ids with a label, or another id of the answer without
one, count as wrong. Then a model writes answers with eight runs of code each; the ids that went through it are set
against those of the texts. The details say the same of a chain of tool calls and of search trees, against the ids of
their unique prefixes.
"""

from __future__ import annotations

from typing import Any

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.dictated import Dictated, unique_prefixes
from benchmarks.tool_scenarios import SCENARIOS, say, work

TARGET, TREES, RUNS, ROWS = 1.02, 1.3, 8, 300


def measure(setting: Setting) -> Measured:
    tokenizer = shipped_tokenizer()
    wrong, given = labels(tokenizer, 50 if setting.quick else ROWS)
    fed, whole, anew = interleaved(tokenizer, 1 if setting.quick else 4)
    trees = {scenario.name: tree(tokenizer, scenario) for scenario in SCENARIOS[:: 10 if setting.quick else 2]}
    worst = max(trees.values())
    ratio = fed / whole
    details = {
        "ids of results": given, "wrongly labelled": wrong, "runs of code in a text": RUNS,
        "ids through the model": fed, "ids of the texts": whole, "search trees, worst": round(worst, 3),
        "search trees, mean": round(sum(trees.values()) / len(trees), 3), "target of trees": f"≤ {TREES}",
    }  # fmt: skip
    passed = wrong == 0 and given > 0 and ratio <= TARGET and worst <= TREES
    return Measured(round(ratio, 4), passed, f"{anew / whole:.2f} without the kept cache", None, details)


def shipped_tokenizer() -> Any:
    from core.config.schema import ModelConfig
    from core.models.load import load_tokenizer

    return load_tokenizer(ModelConfig(path="embedded"))


def labels(tokenizer: Any, count: int) -> tuple[int, int]:
    """(ids labelled wrongly, ids of results) over rows of the shipped set."""
    from apps.tool_use.bridge import CodeRunner, bridged, equations
    from apps.tool_use.interleaved import load_answers, row_of
    from core.data.encode import IGNORE, encode

    with CodeRunner() as runner:
        kept, _ = bridged(load_answers(None, "embedded", limit=count), equations, runner)
    wrong = given = 0
    for example in kept:
        row = row_of(example)
        encoded = encode(row, tokenizer, mode="pieces", eos=False)
        assert encoded is not None
        sizes = [len(tokenizer(segment.text, add_special_tokens=False)["input_ids"]) for segment in row]
        at = len(encoded.labels) - sum(sizes)
        for segment, size in zip(row, sizes):
            wrong += sum((label != IGNORE) != segment.train for label in encoded.labels[at : at + size])
            given += size if segment.role == "tool" else 0
            at += size
    return wrong, given


def interleaved(tokenizer: Any, texts: int) -> tuple[int, int, int]:
    """(ids through the model, ids of the texts, ids through it without a kept cache)."""
    from apps.tool_use.methods.toolbridge import BridgePipeline

    fed = whole = anew = 0
    for number in range(texts):
        parts = [f" Step {n}: <python>print({n} * {number + 7})</python>" for n in range(RUNS)]
        engine = Dictated(tokenizer, [*parts, " That is all.\n\n"])
        with BridgePipeline(engine, tokenizer) as pipeline:
            result = pipeline(f"What are the first {RUNS} multiples of {number + 7}?", max_new_tokens=2000)
        assert len(result.meta["runs"]) == RUNS, result.meta
        fed, whole = fed + engine.processed, whole + len(engine.asked[-1])
        anew += sum(map(len, engine.asked))
    return fed, whole, anew


def tree(tokenizer: Any, scenario: Any) -> float:
    """Ids through the model in a search, over those of its unique prefixes."""
    from apps.tool_use.executors import Local
    from apps.tool_use.pipeline import ToolUseConfig, ToolUsePipeline

    engine = Dictated(tokenizer, [say(letter, number) for number, letter in enumerate(scenario.script, 1)])
    config = ToolUseConfig(strategy="dfsdt", constrained=False, **scenario.options)
    ToolUsePipeline(engine, tokenizer, config, executor=Local([work], trusted=True))("Do it.")
    return engine.processed / unique_prefixes(engine.asked)


BAR = Bar(
    "tool_use.U8",
    "code in answers: ids through the model for each id of the text, results without loss",
    "×",
    f"≤ {TARGET}, no loss on results; search trees ≤ {TREES} of their unique prefixes",
    "cpu",
    1,
    measure,
)
