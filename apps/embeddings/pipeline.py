"""Texts in, vectors out; and what people do with vectors: compare, index, search, explain.

    with EmbeddingPipeline.from_pretrained("runs/embeddings_small/42") as embed:
        vectors = embed(texts, task="Given a question, retrieve passages that answer it", kind="query")

Texts are sorted by length inside and come back in order. A query carries its instruction, a document does not.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from apps.embeddings import prompts
from apps.embeddings.evaluator import EmbeddingEvaluator
from apps.embeddings.example import EmbeddingExample, example_from
from apps.embeddings.options import EmbeddingConfig
from core.config.files import whole_folder
from core.config.typed import Places, build
from core.errors import AppInputError, BackendUnavailable, ConfigError, DataError
from core.inference.served import CARD, Served, read_card
from core.models.attention import without_planning
from core.retrieval import AnnIndex, Bm25Index, DenseIndex, Hit

Kind = Literal["query", "document"]
DEPTH = 100
"""Documents kept for each query in a prediction."""


class EmbeddingPipeline(Served):
    """Give an `EmbeddingModel` and its tokenizer; or use `from_pretrained` or `from_model`."""

    app: ClassVar[str] = "embeddings"
    example_cls: ClassVar[type] = EmbeddingExample
    evaluator_cls: ClassVar[type] = EmbeddingEvaluator
    config_cls: ClassVar[type] = EmbeddingConfig
    predicts_together: ClassVar[bool] = True

    def __init__(self, model: Any, tokenizer: Any, config: EmbeddingConfig | None = None) -> None:
        from apps.embeddings.encode import with_ending

        self.model, self.tokenizer = model, with_ending(tokenizer)
        self.config: EmbeddingConfig = config or EmbeddingConfig()
        prompts.prompt_of(self.config.template, "")
        cut_to(np.zeros((1, model.dimension), np.float32), self.config.dimensions)
        self.source: dict[str, Any] = {}
        self.truncated, self._warned = 0, False

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, **config: Any) -> Self:
        """Serve a model that is already in memory."""
        return cls(model, tokenizer, build(cls.config_cls, dict(config), Places(cls.__name__)))

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        engine: str = "hf",
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        **config: Any,
    ) -> Self:
        """Open a run folder, a folder of sentence-transformers or transformers, "package:NAME", or "embedded".

        Args:
            engine: "hf" loads the weights; "tiny" takes random ones.
            config: fields of `EmbeddingConfig`, laid over what was saved with the model.

        Raises:
            CheckpointError: no model there. ConfigError: an unknown field, with the nearest one.
        """
        from apps.embeddings.model import build_model
        from core.config.schema import ModelConfig
        from core.inference.load import pick_device
        from core.models.load import load_tokenizer, resolve_path
        from core.models.tokenizer import train_bpe

        build(cls.config_cls, dict(config), Places(cls.__name__))
        if engine == "tiny":
            tokenizer = train_bpe(["tiny"], 260)
            return cls.from_model(build_model(ModelConfig(preset="tiny"), tokenizer, device="cpu"), tokenizer, **config)
        if engine != "hf":
            raise ConfigError(f"engine '{engine}' gives no embeddings", hint="use hf or tiny")
        folder = resolve_path(str(path))
        card = read_card(folder)
        wanted = {"path": folder, "revision": revision, "dtype": dtype, "quantization": quantization or "none"}
        spec = build(ModelConfig, wanted, Places("from_pretrained"))
        tokenizer = load_tokenizer(spec)
        model = build_model(spec, tokenizer, device=pick_device(device)).eval()
        model.pooling.to(model.states_dtype)
        saved = card.get("config", {}) if card.get("app") == cls.app else own_prompts(model)
        pipeline = cls.from_model(model, tokenizer, **{**saved, **config})
        pipeline.source = {"path": folder}
        return pipeline

    # ---- vectors -----------------------------------------------------------------------------------------------

    @property
    def dimension(self) -> int:
        return self.config.dimensions or self.model.dimension

    @property
    def max_length(self) -> int:
        """Tokens of a text that are read."""
        own = getattr(self.model.encoder, "graft_max_length", None)
        limits = [self.config.max_length or own, getattr(self.model.config, "max_position_embeddings", None)]
        return min([limit for limit in limits if limit] or [512])

    def __call__(
        self, texts: str | Sequence[str], *, task: str | None = None, kind: Kind = "document", prompt: str | None = None
    ) -> np.ndarray:
        """Embeddings (n, d) in float32 of a list, (d,) of one text.

        Args:
            kind: "query" puts the instruction `task` in front, "document" nothing; a model with prompts of its own gets
                these instead. prompt: a prompt word for word.

        Raises:
            AppInputError: an unknown kind, or empty texts, with their numbers. BackendUnavailable: it is closed.
        """
        if self.model is None:
            raise BackendUnavailable("the pipeline is closed", hint="open it again with from_pretrained")
        if kind not in ("query", "document"):
            raise AppInputError(f"unknown kind '{kind}'", hint="query or document")
        if isinstance(texts, str):
            return self([texts], task=task, kind=kind, prompt=prompt)[0]
        if not isinstance(texts, (list, tuple)):
            raise AppInputError(f"cannot embed {type(texts).__name__}", hint="give a text or a list of texts")
        if prompt is None:
            prompt = self.prompt(kind, task)
        return self._embed(list(texts), prompt)

    def prompt(self, kind: Kind, task: str | None = None) -> str:
        """What stands before a text of this kind."""
        if kind == "document":
            return self.config.document_prompt
        own = prompts.prompt_of(self.config.template, self.config.task if task is None else task)
        return own or self.config.query_prompt

    def _embed(self, texts: list[str], prompt: str) -> np.ndarray:
        import torch

        from apps.embeddings.encode import by_length, encode_texts, padded

        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        encoded = encode_texts(self.tokenizer, texts, [prompt] * len(texts), self.max_length)
        self.truncated = sum(text.cut for text in encoded)
        if self.truncated and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.truncated} of {len(texts)} texts are longer than {self.max_length} tokens and are cut",
                stacklevel=3,
            )
        found = torch.empty(len(texts), self.model.dimension)
        training = self.model.training
        self.model.eval()
        with torch.inference_mode(), without_planning(self.model.device):
            for group in by_length([len(text.ids) for text in encoded], self.config.batch_tokens):
                batch = padded([encoded[i] for i in group], self.tokenizer.pad_token_id or 0)
                found[group] = self.model(**{n: v.to(self.model.device) for n, v in batch.items()}).float().cpu()
        self.model.train(training)
        return cut_to(found.numpy(), self.config.dimensions)

    def similarity(self, first: Any, second: Any, *, task: str | None = None) -> np.ndarray:
        """Cosine of every text of `first` with every text of `second`; both get the instruction, if there is one."""
        a, b = (np.atleast_2d(self(x, task=task, kind="query")) for x in (first, second))
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        return a @ b.T

    # ---- search ------------------------------------------------------------------------------------------------

    def index(
        self, corpus: Sequence[str] | Mapping[str, str], *, structure: Literal["exact", "hnsw", "ivf", "bm25"] = "exact"
    ) -> Any:
        """An index over texts, by their numbers or their keys.

        Raises:
            ConfigError: an unknown structure. AppInputError: no list and no mapping of texts.
        """
        ids, texts = _corpus(corpus)
        if structure == "bm25":
            return Bm25Index(ids, texts)
        if structure == "exact":
            return DenseIndex(ids, self(texts), device=self.model.device.type)
        if structure in ("hnsw", "ivf"):
            return AnnIndex(ids, self(texts), structure=structure)
        raise ConfigError(f"unknown structure '{structure}'", hint="exact, hnsw, ivf or bm25")

    def search(self, queries: str | Sequence[str], k: int = 10, *, index: Any, task: str | None = None) -> list[Any]:
        """Hits of one query, or a list of hits for each of several."""
        if not hasattr(index, "search"):
            raise AppInputError(f"cannot search {type(index).__name__}", hint="give what index(texts) returned")
        many = [queries] if isinstance(queries, str) else list(queries)
        asked = many if isinstance(index, Bm25Index) else self(many, task=task, kind="query")
        found: list[list[Hit]] = index.search(asked, k)
        return found[0] if isinstance(queries, str) else found

    # ---- evaluation --------------------------------------------------------------------------------------------

    def to_example(self, given: Any, **fields: Any) -> EmbeddingExample:
        """Text, a dictionary, or an example. Raises `AppInputError` for anything else."""
        if isinstance(given, EmbeddingExample):
            return given
        if isinstance(given, (str, Mapping)):
            return example_from({"text": given, **fields} if isinstance(given, str) else {**given, **fields})
        raise AppInputError(f"cannot use {type(given).__name__}", hint="give text, a dictionary or an EmbeddingExample")

    def predict(self, examples: Sequence[EmbeddingExample], **settings: Any) -> list[Any]:
        """What the evaluator scores: a cosine for pairs, a ranking for queries, a vector for labelled texts.

        A triplet's ranking is over its own texts; a query's over the documents among the examples.

        Raises:
            DataError: queries, and no documents.
        """
        examples = [self.to_example(example) for example in examples]
        found: list[Any] = [None] * len(examples)
        by_task: dict[tuple[str, str], list[int]] = {}
        for number, example in enumerate(examples):
            by_task.setdefault((example.kind, example.task), []).append(number)
        documents = [number for number, example in enumerate(examples) if example.kind == "document"]
        if not documents and any(kind == "query" for kind, _ in by_task):
            raise DataError("there are queries and no documents to search", hint='give documents: {"id", "text"}')
        names = [str(examples[i].id if examples[i].id is not None else i) for i in documents]
        index = DenseIndex(names, self([examples[i].text for i in documents])) if documents else None
        for (kind, task), numbers in by_task.items():
            if kind == "document":
                continue
            vectors = self([examples[i].text for i in numbers], task=task, kind="query")
            if kind == "pair":
                other = self([examples[i].text2 or "" for i in numbers], task=task, kind="query")
                values = _cosines(vectors, other).tolist()
            elif kind == "labelled":
                values = vectors.tolist()
            elif kind == "query":
                assert index is not None
                values = [[list(h) for h in hits] for hits in index.search(vectors, DEPTH)]
            else:
                values = [self._ranked(examples[i], vector) for i, vector in zip(numbers, vectors)]
            for number, value in zip(numbers, values):
                found[number] = value
        return found

    def _ranked(self, example: EmbeddingExample, vector: np.ndarray) -> list[list[Any]]:
        names = [f"pos{i}" for i in range(len(example.pos))] + [f"neg{i}" for i in range(len(example.neg))]
        return [list(h) for h in DenseIndex(names, self([*example.pos, *example.neg])).search(vector[None], DEPTH)[0]]

    # ---- folders -----------------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that sentence-transformers opens, with the card of this pipeline; adapters are folded in.

        Raises:
            CheckpointError: the folder holds something that is no model.
        """
        with whole_folder(path, CARD) as folder:
            before = {kind: self.prompt(kind) for kind in get_args(Kind)}
            made = self.model.to_sentence_transformer(self.tokenizer, self.max_length, before)
            made.save(str(folder), create_model_card=False)
            card = {k: v for k, v in dataclasses.asdict(self.config).items() if v is not None}
            self._write_card(folder, card)

    def close(self) -> None:
        """Give the model's memory back."""
        import gc

        self.model = None
        gc.collect()


def cut_to(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The leading dimensions, scaled to unit length again. Raises `AppInputError` for more than there are."""
    if dimensions is None:
        return vectors
    if not 1 <= dimensions <= vectors.shape[1]:
        raise AppInputError(f"{dimensions} dimensions asked of {vectors.shape[1]}", hint="set dimensions lower")
    part = vectors[:, :dimensions]
    return part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def own_prompts(model: Any) -> dict[str, str]:
    """Settings that carry the prompts of a model made by sentence-transformers."""
    given = getattr(model.encoder, "graft_prompts", {})
    document = next((given[name] for name in ("document", "passage", "corpus") if name in given), "")
    return {"query_prompt": given.get("query", ""), "document_prompt": document}


def _corpus(corpus: Sequence[str] | Mapping[str, str]) -> tuple[list[str], list[str]]:
    if isinstance(corpus, Mapping):
        return list(corpus), list(corpus.values())
    if not isinstance(corpus, (list, tuple)):
        raise AppInputError(f"cannot index {type(corpus).__name__}", hint="give a list of texts, or ids with texts")
    return [str(number) for number in range(len(corpus))], list(corpus)
