"""Find the tools that a question needs among thousands: by words, by meaning, or by both.

    find = ToolRetriever(tools)                          # words alone: nothing to train or download
    find = ToolRetriever.from_pretrained("runs/retriever/42", tools=tools)
    find("Weather in Rome?", k=3)                        # [FoundTool("get_weather", 0.93, ToolSpec(…)), …]

BM25 reads names cut at capitals and underscores, and counts a word of a question once: long questions repeat articles,
not intents. The dense half is a bi-encoder of sentence-transformers (Qin et al. 2023, ToolLLM's API retriever).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from apps.tool_use.catalogue import Catalogue, ToolQuery
from apps.tool_use.options import RetrieverConfig
from apps.tool_use.retriever_score import RetrievalEvaluator
from apps.tool_use.spec import ToolSpec
from core.config.files import whole_folder, write_json
from core.config.typed import Places, build
from core.errors import AppInputError, BackendUnavailable, CheckpointError, ConfigError
from core.inference.served import CARD, Served, read_card
from core.retrieval import Bm25Index, DenseIndex, Hit, load_index, reciprocal_rank_fusion, weighted_sum
from core.retrieval.words import code

TOOLS = "tools.json"


class FoundTool(NamedTuple):
    """A tool that was found: its id, its score (higher is nearer), and the tool."""

    id: str
    score: float
    tool: ToolSpec


class ToolRetriever(Served):
    """Search over a catalogue.

    Args:
        tools: a `Catalogue`, or what makes one; None waits for `index`.
        model: a `SentenceTransformer`; None searches by words alone.
        config: fields of `RetrieverConfig`.
    """

    app: ClassVar[str] = "tool_use"
    example_cls: ClassVar[type] = ToolQuery
    evaluator_cls: ClassVar[type] = RetrievalEvaluator
    config_cls: ClassVar[type] = RetrieverConfig
    predicts_together: ClassVar[bool] = True

    def __init__(self, tools: Any = None, model: Any = None, config: RetrieverConfig | None = None) -> None:
        self.model, self.config = model, config or RetrieverConfig()
        self.catalogue: Catalogue | None = None
        self.source: dict[str, Any] = {}
        self._words: Bm25Index | None = None
        self._meaning: DenseIndex | None = None
        self._memory: Any = None
        if self.search in ("dense", "hybrid") and model is None:
            raise ConfigError(f"a {self.search} search needs a model", hint="search: bm25, or open a trained retriever")
        if tools is not None:
            self.index(tools)

    @property
    def search(self) -> str:
        if self.config.search == "auto":
            return "bm25" if self.model is None else "hybrid"
        return self.config.search

    # ---- construction ------------------------------------------------------------------------------------------

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any = None, **config: Any) -> Self:
        """Serve a model that is already in memory."""
        return cls(None, model, build(cls.config_cls, dict(config), Places(cls.__name__)))

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, tools: Any = None, engine: str = "hf", device: str = "auto", **config: Any
    ) -> Self:
        """Open a saved retriever, a run, a folder of sentence-transformers, or "package:NAME".

        Args:
            tools: another catalogue than the saved one. engine: "hf" loads weights; "tiny" has none and uses words.

        Raises:
            CheckpointError: no retriever there. ConfigError: an unknown field, with the nearest one.
        """
        build(cls.config_cls, dict(config), Places(cls.__name__))
        if engine == "tiny":
            return cls(tools, None, build(cls.config_cls, {**config, "search": "bm25"}, Places(cls.__name__)))
        if engine != "hf":
            raise ConfigError(f"engine '{engine}' does not search", hint="use hf or tiny")
        folder, library = _places(str(path))
        card = {} if folder is None else read_card(folder)
        if card and card.get("app") != cls.app:
            raise CheckpointError(f"the model was saved by the app '{card.get('app')}'", where=str(folder))
        model = None
        if library is not None:
            from apps.tool_use.retriever_model import opened
            from core.inference.load import pick_device

            model = opened(library, pick_device(device))
        made = cls(None, model, build(cls.config_cls, {**card.get("config", {}), **config}, Places(cls.__name__)))
        made.source = {"path": str(folder or library)}
        if tools is not None:
            made.index(tools)
        elif folder is not None and (folder / TOOLS).is_file():
            made._reopen(folder)
        return made

    def _reopen(self, folder: Path) -> None:
        """The saved catalogue with its indexes; an index of other settings is built again."""
        self.catalogue = Catalogue.from_file(folder / TOOLS)
        words, meaning = folder / "bm25", folder / "dense"
        if words.is_dir():
            self._words = load_index(words)
        if meaning.is_dir():
            self._meaning = load_index(meaning)
        if (folder / "memory").is_dir():
            from apps.tool_use.retriever_memory import Memory

            self._memory = Memory.load(folder / "memory")

    # ---- search ------------------------------------------------------------------------------------------------

    def index(self, tools: Any) -> Self:
        """Take another catalogue. Raises `DataError` for no tools."""
        self.catalogue = tools if isinstance(tools, Catalogue) else Catalogue(tools)
        self._words = self._meaning = None
        return self

    def _indexed(self) -> Catalogue:
        if self.catalogue is None:
            raise AppInputError("there are no tools to search", hint="ToolRetriever(tools), or index(tools)")
        texts = self.catalogue.texts
        if self.search != "dense" and self._words is None:
            self._words = Bm25Index(list(texts), list(texts.values()), k1=self.config.k1, b=self.config.b, words="code")
        if self.search != "bm25" and self._meaning is None:
            self._meaning = DenseIndex(list(texts), self.vectors(list(texts.values())))
        return self.catalogue

    def vectors(self, texts: Sequence[str]) -> Any:
        """(n, d) float32 unit vectors of texts."""
        from apps.tool_use.retriever_model import encoded

        if self.model is None:
            raise BackendUnavailable("this retriever has no model", hint="open a trained one: from_pretrained")
        return encoded(self.model, list(texts), self.config.batch)

    def remember(self, questions: Sequence[ToolQuery]) -> Self:
        """Let answered questions vote for their tools. Raises `DataError` for tools that are not in the catalogue."""
        from apps.tool_use.retriever_memory import Memory

        answered = [question for question in questions if question.gold]
        if self.catalogue is not None:
            for question in answered:
                self.catalogue.checked(question.gold, "remembered")
        texts = [question.query for question in answered]
        by_meaning = self.search != "bm25" and texts
        self._memory = Memory(texts, [q.gold for q in answered], self.vectors(texts) if by_meaning else None)
        return self

    def rank(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most `k` hits for each question, best first; equal scores in the order of the ids."""
        empty = [number for number, query in enumerate(queries) if not isinstance(query, str) or not query.strip()]
        if empty:
            raise AppInputError(f"{len(empty)} empty questions, rows {empty[:5]}")
        catalogue = self._indexed()
        alone = self.search != "hybrid" and self._memory is None
        depth = k if alone else max(k, self.config.depth)
        words = [" ".join(dict.fromkeys(code(query))) for query in queries]
        vectors = self.vectors(queries) if self.search != "bm25" else None
        found: list[tuple[float, list[list[Hit]]]] = []
        if self._words is not None and self.search != "dense":
            found.append((1.0, self._words.search(words, depth)))
        if self._meaning is not None and vectors is not None:
            found.append((self.config.weight, self._meaning.search(vectors, depth)))
        if self._memory is not None:
            votes = self._memory.votes(words, vectors, self.config.neighbours)
            here = [[hit for hit in row if hit.id in catalogue.tools] for row in votes]
            found.append((self.config.remembered, here))
        if alone:
            return found[0][1]
        fuse = weighted_sum if self.config.fusion == "sum" else reciprocal_rank_fusion
        weights, rankings = zip(*found)
        return [fuse(several, k, weights=weights) for several in zip(*rankings)]

    def __call__(self, queries: str | Sequence[str], k: int | None = None) -> Any:
        """The tools of one question, or a list of them for a list of questions."""
        many = [queries] if isinstance(queries, str) else list(queries)
        hits = self.rank(many, k or self.config.k)
        assert self.catalogue is not None
        tools = self.catalogue.tools
        found = [[FoundTool(hit.id, hit.score, tools[hit.id]) for hit in row] for row in hits]
        return found[0] if isinstance(queries, str) else found

    def fused(self, wordings: Sequence[str], k: int | None = None) -> list[FoundTool]:
        """The tools of one question in several wordings, their rankings joined by reciprocal ranks."""
        k = k or self.config.k
        rankings = self.rank(wordings, max(k, self.config.depth))
        assert self.catalogue is not None
        hits = reciprocal_rank_fusion(rankings, k)
        return [FoundTool(hit.id, hit.score, self.catalogue.tools[hit.id]) for hit in hits]

    # ---- evaluation --------------------------------------------------------------------------------------------

    def to_example(self, given: Any, **fields: Any) -> ToolQuery:
        """A question as text, {"query", "gold"?, "tools"?}, or a `ToolQuery`."""
        if isinstance(given, ToolQuery):
            return given
        row = {"query": given, **fields} if isinstance(given, str) else given
        if not isinstance(row, Mapping) or not isinstance(row.get("query"), str):
            raise AppInputError(f"cannot use {type(given).__name__} as a question", hint='{"query": …, "tools"?: […]}')
        tools = Catalogue(row["tools"]) if row.get("tools") else self.catalogue
        if tools is None:
            raise AppInputError("no tools were given", hint='{"query": …, "tools": […]}')
        return ToolQuery(row["query"], tools.checked(row.get("gold", ()), "gold"), tools)

    def predict(self, examples: Sequence[ToolQuery], **settings: Any) -> list[list[str]]:
        """A ranking of ids for each question, over its own catalogue."""
        examples = [self.to_example(example) for example in examples]
        found: list[list[str]] = [[] for _ in examples]
        kept = self.catalogue, self._words, self._meaning
        try:
            for numbers in _by_catalogue(examples):
                if examples[numbers[0]].catalogue is not self.catalogue:
                    self.index(examples[numbers[0]].catalogue)
                hits = self.rank([examples[i].query for i in numbers], self.config.depth)
                for number, row in zip(numbers, hits):
                    found[number] = [hit.id for hit in row]
        finally:
            self.catalogue, self._words, self._meaning = kept
        return found

    # ---- folders -----------------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that sentence-transformers opens, with the catalogue and its indexes where there is one.

        Raises:
            CheckpointError: the folder holds something else.
        """
        with whole_folder(path, CARD) as folder:
            if self.model is not None:
                write = getattr(self.model, "write", self.model.save)
                write(folder)
            if self.catalogue is not None:
                self._indexed()
                write_json(folder / TOOLS, self.catalogue.to_rows())
                for name, index in (("bm25", self._words), ("dense", self._meaning)):
                    if index is not None:
                        index.save(folder / name)
            if self._memory is not None:
                self._memory.save(folder / "memory")
            self._write_card(folder, dataclasses.asdict(self.config))

    def close(self) -> None:
        """Give the model's memory back."""
        self.model = None


def _by_catalogue(examples: Iterable[ToolQuery]) -> list[list[int]]:
    """Numbers of examples that share a catalogue."""
    groups: dict[int, list[int]] = {}
    for number, example in enumerate(examples):
        groups.setdefault(id(example.catalogue), []).append(number)
    return list(groups.values())


def _places(path: str) -> tuple[Path | None, Path | None]:
    """(folder of a saved retriever, folder of its sentence-transformers model), either of them None.

    Raises:
        CheckpointError: neither.
    """
    from core.models.load import PACKAGE

    if path.startswith(PACKAGE):
        from apps.tool_use.retriever_model import library_folder

        return None, library_folder(path)
    given = Path(path).expanduser()
    for folder in (given, given / "model"):
        library = folder if (folder / "modules.json").is_file() else None
        if library is not None or (folder / CARD).is_file():
            return folder, library
    raise CheckpointError("no retriever here", where=path, hint="a saved ToolRetriever, or a run of tool_use.retriever")
