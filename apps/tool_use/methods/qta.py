"""`tool_use.qta`: reword questions so that a frozen retriever finds their tools (Zhang et al. 2024, QTA).

A few labelled questions are enough: the model rewords each of them m times, the retriever ranks the tools for every
wording, and a ranking function turns the places of the right tools into preferences, from which the model learns by
direct preference optimisation (Rafailov et al. 2023). A wording stands by the place of its worst-ranked right tool,
since one that is missing fails the task; equal places are told apart by nDCG. The order is ours where the paper leaves
it to the task. A second round starts from the first one's model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from apps.tool_use.catalogue import ToolQuery
from apps.tool_use.retriever_score import ndcg, sufficiency_rank
from core.config.limits import DPO
from core.config.registry import method
from core.config.schema import key
from core.data.segments import Segment
from core.errors import AppInputError, DataError
from core.inference.pipeline import BasePipeline, PipelineConfig
from core.inference.request import Output, Request, Result

if TYPE_CHECKING:
    from core.training.stage import Stage, StageContext

TEMPLATES = {
    "plain": ("Reword the request so that a search finds the tools for it.\nRequest: {}\nReworded:", " ", "\n"),
    "chatml": ("<|im_start|>user\nReword the request so that a search finds the tools for it.\nRequest: {}<|im_end|>\n"
               "<|im_start|>assistant\n", "", "<|im_end|>"),
}  # fmt: skip
"""Prompt, what stands before a wording, and where it ends."""
CUTOFF = 10


@dataclass(frozen=True)
class QtaConfig:
    """Options of `tool_use.qta`."""

    template: str = key("plain", "prompt template", one_of=TEMPLATES)
    mode: Literal["offsets", "pieces"] = key("offsets", "tokenise a row as a whole, or segment by segment")
    retriever: str = key("bm25", "the frozen retriever: bm25, or the path of a trained one")
    rewriter: str | None = key(None, "path of the model that rewords the training questions; null: the recipe's model")
    rewrites: int = key(8, "wordings of each question (m)", least=1)
    temperature: float = key(1.0, "of sampling them", above=0)
    longest: int = key(64, "tokens of a wording at most", least=1)
    gap: int = key(1, "places by which the better wording must be ahead (δ)", least=0)
    ndcg_gap: float = key(0.05, "where the places are equal: by how much nDCG must differ", above=0)
    pairs: int = key(4, "pairs of each question at most", least=1)
    depth: int = key(100, "tools of a ranking", least=1)
    beta: float = key(0.1, "how strongly the model is held to its start", above=0)


@dataclass(frozen=True)
class Standing:
    """How well a wording does: the place of its worst-ranked right tool, then nDCG@10."""

    place: int
    ndcg: float

    @property
    def order(self) -> tuple[int, float]:
        """Smaller is better."""
        return self.place, -self.ndcg

    def ahead_of(self, other: Standing, gap: int, ndcg_gap: float) -> bool:
        """Better than `other` by at least the gap that counts."""
        if self.place != other.place:
            return other.place - self.place >= max(1, gap)
        return self.ndcg - other.ndcg >= ndcg_gap


def standing(ranking: Sequence[str], gold: Sequence[str]) -> Standing:
    return Standing(sufficiency_rank(ranking, gold), ndcg(ranking, gold, CUTOFF))


def preferences(
    wordings: Sequence[str], standings: Sequence[Standing], *, gap: int = 1, ndcg_gap: float = 0.05, most: int = 4
) -> list[tuple[str, str]]:
    """(better, worse) wordings of one question: the best against those it is ahead of, the worst of them first."""
    if not wordings:
        return []
    order = sorted(range(len(wordings)), key=lambda i: (standings[i].order, i))
    best = order[0]
    worse = [i for i in reversed(order) if standings[best].ahead_of(standings[i], gap, ndcg_gap)]
    return [(wordings[best], wordings[i]) for i in worse[:most]]


def wordings_of(example: ToolQuery) -> list[str]:
    """The question and its rewrites, each once; what is empty is left out."""
    texts = (" ".join(text.split()) for text in (example.query, *example.rewrites))
    return [text for text in dict.fromkeys(texts) if text]


def aligned(examples: Sequence[ToolQuery], retriever: Any, options: QtaConfig) -> list[tuple[str, str, str]]:
    """(question, better wording, worse wording) of all questions with right tools, as the retriever ranks them."""
    flat = [(n, text) for n, example in enumerate(examples) if example.gold for text in wordings_of(example)]
    asked = [dataclasses.replace(examples[n], query=text) for n, text in flat]
    rankings = retriever.predict(asked) if asked else []
    found: dict[int, tuple[list[str], list[Standing]]] = {}
    for (n, text), ranking in zip(flat, rankings):
        texts, standings = found.setdefault(n, ([], []))
        texts.append(text)
        standings.append(standing(ranking[: options.depth], examples[n].gold))
    rows = []
    for n, (texts, standings) in found.items():
        made = preferences(texts, standings, gap=options.gap, ndcg_gap=options.ndcg_gap, most=options.pairs)
        rows += [(examples[n].query, better, worse) for better, worse in made]
    return rows


def row_of(question: str, wording: str, template: str = "plain") -> list[Segment]:
    """The question as given, a wording as learnt."""
    text, lead, end = TEMPLATES[template]
    return [Segment(text.format(question)), Segment(f"{lead}{wording}{end}", "assistant", True)]


@method("tool_use.qta", config=QtaConfig, limits=DPO)
def qta(ctx: StageContext) -> Stage:
    """Pairs of wordings behind one question."""
    from core.training.callbacks import say
    from core.training.preference.dpo import DpoTrainer
    from core.training.preference.pairs import Pair, encode_pairs
    from core.training.stage import Stage

    options = ctx.options
    examples = reworded(list(ctx.train), ctx)
    retriever = open_retriever(options.retriever, options.depth)
    rows = aligned(examples, retriever, options)
    if ctx.run is not None:
        asked = sum(bool(example.gold) for example in examples)
        say(ctx.run, f"{len(rows)} pairs of wordings of {asked} questions, ranked by {options.retriever}")
    if not rows:
        raise DataError("no wording of any question is ahead of another", field="with.gap",
                        hint="more rewrites, a higher temperature, or a smaller gap")  # fmt: skip
    return Stage(
        rows=[Pair(*(row_of(question, text, options.template) for text in pair)) for question, *pair in rows],
        mode=options.mode,
        encoder=encode_pairs,
        trainer=DpoTrainer,
        trainer_options={"tokenizer": ctx.tokenizer, "options": {"beta": options.beta, "max_length": None}},
    )


def reworded(examples: list[ToolQuery], ctx: StageContext) -> list[ToolQuery]:
    """The examples with rewrites; those that bring none are reworded by the rewriter."""
    options, todo = ctx.options, [n for n, example in enumerate(examples) if example.gold and not example.rewrites]
    if not todo:
        return examples
    path = options.rewriter or ctx.recipe.model.path
    opened = {"engine": "hf"} if path else {"engine": "tiny"}
    with RewritePipeline.from_pretrained(path or "", template=options.template, mode=options.mode, **opened) as rewrite:
        asked = [examples[n] for n in todo for _ in range(options.rewrites)]
        sampling = {"temperature": options.temperature, "seed": ctx.recipe.seed, "max_new_tokens": options.longest}
        texts = [result.text for result in rewrite.batch(asked, **sampling)]
    for place, n in enumerate(todo):
        own = texts[place * options.rewrites : (place + 1) * options.rewrites]
        examples[n] = dataclasses.replace(examples[n], rewrites=tuple(own))
    return examples


def open_retriever(name: str, depth: int) -> Any:
    """BM25, or the trained retriever at a path."""
    from apps.tool_use.options import RetrieverConfig
    from apps.tool_use.retriever import ToolRetriever

    if name == "bm25":
        return ToolRetriever(config=RetrieverConfig(depth=depth))
    return ToolRetriever.from_pretrained(name, depth=depth)


@dataclass(frozen=True)
class RewriteConfig(PipelineConfig):
    """Args:
    retriever: bm25, or the path of a trained one. wordings: of a question, their rankings joined by reciprocal ranks;
        the first is the likeliest, the others are drawn. original: the question itself is one more. depth: tools given.
    """

    template: str | None = "plain"
    max_new_tokens: int = 64
    retriever: str = "bm25"
    wordings: int = 1
    original: bool = False
    depth: int = 100


class RewritePipeline(BasePipeline):
    """`rewrite("question")` gives a wording; `find` and `predict` also search with it."""

    app = "tool_use"
    example_cls = ToolQuery
    default_template = "plain"
    config_cls = RewriteConfig
    from_training = ("template", "mode", "retriever", "depth")
    predicts_together = True
    config: RewriteConfig

    def to_example(self, given: Any, **fields: Any) -> ToolQuery:
        from apps.tool_use.retriever import ToolRetriever

        if isinstance(given, str) and not fields:
            return ToolQuery(given, (), None)  # type: ignore[arg-type]
        return ToolRetriever().to_example(given, **fields)

    def prepare(self, example: ToolQuery) -> Request:
        if not example.query.strip():
            raise AppInputError("the question is empty")
        template = self.config.template or "plain"
        request = self.request(row_of(example.query, "", template)[:1])
        return dataclasses.replace(request, stop=(TEMPLATES[template][2],))

    def finish(self, request: Request, output: Output) -> Result:
        return Result(" ".join(output.text.split()))

    def target_text(self, target: str) -> str:
        return TEMPLATES[self.config.template or "plain"][1] + target

    def find(self, query: str, tools: Any, k: int = 5) -> list[Any]:
        """The tools of a question, found by its wordings."""
        from apps.tool_use.catalogue import Catalogue

        catalogue = tools if isinstance(tools, Catalogue) else Catalogue(tools)
        (example,) = self.reworded([ToolQuery(query, (), catalogue)])
        retriever = open_retriever(self.config.retriever, self.config.depth).index(catalogue)
        return retriever.fused(self._wordings(example), k)

    def reworded(self, examples: Iterable[ToolQuery], **gen: Any) -> list[ToolQuery]:
        """The examples with as many rewrites as `wordings`; those after the first are drawn."""
        examples = list(examples)
        first = [result.text for result in self.batch(examples, **gen)]
        made = [[text] for text in first]
        if self.config.wordings > 1:
            drawn = [example for example in examples for _ in range(self.config.wordings - 1)]
            texts = [r.text for r in self.batch(drawn, **{"temperature": 1.0, "seed": 0, **gen})]
            for n in range(len(examples)):
                made[n] += texts[n * (self.config.wordings - 1) : (n + 1) * (self.config.wordings - 1)]
        return [dataclasses.replace(e, rewrites=tuple(texts)) for e, texts in zip(examples, made)]

    def _wordings(self, example: ToolQuery) -> list[str]:
        """What is searched for: the rewrites, the question where it is asked for or nothing else is left."""
        found = [text for text in example.rewrites if text.strip()]
        return [example.query, *found] if self.config.original or not found else found

    def predict(self, examples: Sequence[Any], **gen: Any) -> list[list[str]]:
        """A ranking of tool ids for each question, found by its wordings."""
        from core.retrieval import Hit, reciprocal_rank_fusion

        reworded = self.reworded([self.to_example(example) for example in examples], **gen)
        flat = [(n, text) for n, example in enumerate(reworded) for text in self._wordings(example)]
        retriever = open_retriever(self.config.retriever, self.config.depth)
        rankings = retriever.predict([dataclasses.replace(reworded[n], query=text) for n, text in flat])
        grouped: dict[int, list[list[Hit]]] = {}
        for (n, _), ranking in zip(flat, rankings):
            grouped.setdefault(n, []).append([Hit(name, 0.0) for name in ranking])
        fused = (reciprocal_rank_fusion(grouped[n], self.config.depth) for n in range(len(reworded)))
        return [[hit.id for hit in hits] for hits in fused]
