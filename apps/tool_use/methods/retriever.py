"""`tool_use.retriever`: a bi-encoder that finds tools (Qin et al. 2023, ToolLLM's API retriever).

A row is a question with the document of one of its right tools: category, name, description, parameters. A question
with several right tools gives several rows, and they never meet in a batch. `negatives` adds documents that BM25 finds
near to the question and that are not right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.config.limits import CONTRASTIVE
from core.config.registry import method
from core.config.schema import key
from core.errors import DataError

if TYPE_CHECKING:
    from apps.tool_use.catalogue import ToolQuery
    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class RetrieverMethod:
    """Options of `tool_use.retriever`."""

    temperature: float = key(0.05, "of the softmax over candidates", above=0)
    negatives: int = key(0, "wrong tools that BM25 finds for each question", least=0)
    documents: bool = key(False, "also learn from the catalogue alone: names and descriptions find the rest")
    micro: int = key(256, "texts encoded at once; larger batches are encoded twice, exactly", least=1)


@method("tool_use.retriever", config=RetrieverMethod, limits=CONTRASTIVE)
def retriever(ctx: StageContext) -> Stage:
    """Questions and documents of their right tools."""
    from apps.tool_use.retriever_trainer import RetrieverTrainer, encode_tool_pairs
    from core.training.callbacks import say
    from core.training.stage import Stage

    options, batch = ctx.options, ctx.recipe.train.batch.size
    rows = pairs(ctx.train, options.negatives)
    if options.documents:
        rows += own_pairs(ctx.train)
    tools = len({row.positive for row in rows})
    if tools < batch and ctx.run is not None:
        say(ctx.run, f"the rows have {tools} different tools: batches hold {tools} rows instead of {batch}")
    return Stage(
        rows=rows,
        eval_rows=pairs([e for e in ctx.eval or () if e.gold], options.negatives) if ctx.eval else [],
        encoder=encode_tool_pairs,
        trainer=RetrieverTrainer,
        trainer_options={
            "batch": min(batch, tools),
            "temperature": options.temperature,
            "micro": options.micro,
            "max_length": ctx.recipe.data.max_length,
        },
    )


def pairs(examples: Iterable[ToolQuery], negatives: int = 0) -> list[Any]:
    """A row for each right tool of each question, with `negatives` wrong tools.

    Raises:
        DataError: no question has a right tool.
    """
    from apps.tool_use.retriever_trainer import ToolPair

    examples = [example for example in examples if example.gold]
    if not examples:
        raise DataError("no question has a right tool: there is nothing to learn", field="tools")
    wrong = _near(examples, negatives) if negatives else [()] * len(examples)
    return [
        ToolPair(example.query, example.catalogue.texts[name], tuple(texts))
        for example, texts in zip(examples, wrong)
        for name in example.gold
    ]


def own_pairs(examples: Iterable[ToolQuery]) -> list[Any]:
    """For every tool of the catalogues its name with the rest of its document, and its description with the rest.

    No question is needed, so tools that no question asks for are learnt as well.
    """
    from apps.tool_use.catalogue import document
    from apps.tool_use.retriever_trainer import ToolPair

    catalogues = {id(example.catalogue): example.catalogue for example in examples}
    rows = []
    for catalogue in catalogues.values():
        for tool in catalogue.tools.values():
            nameless, plain = replace(tool, name=""), replace(tool, description="")
            parts = [(tool.name, document(nameless)), (tool.description.strip(), document(plain))]
            rows += [ToolPair(part, rest) for part, rest in parts if part and rest]
    return rows


def _near(examples: Sequence[ToolQuery], count: int) -> list[list[str]]:
    """Documents of `count` wrong tools for each question, those that BM25 finds first, then the catalogue's first."""
    from apps.tool_use.retriever import ToolRetriever

    search = ToolRetriever()
    rankings = search.predict(examples)
    found = []
    for example, ranking in zip(examples, rankings):
        names = [name for name in dict.fromkeys([*ranking, *example.catalogue.ids]) if name not in example.gold]
        if len(names) < count:
            raise DataError(f"the catalogue has {len(names)} wrong tools, and {count} are asked for",
                            field="with.negatives", hint="fewer negatives, or a larger catalogue")  # fmt: skip
        found.append([example.catalogue.texts[name] for name in names[:count]])
    return found
