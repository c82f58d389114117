"""The bridge to MTEB (Muennighoff et al. 2022): our model as its encoder, our examples as its tasks, offline.

`as_mteb(pipeline)` is what `mteb.evaluate` takes as a model, with any of its tasks; `as_task(examples)` makes a task of
search, graded pairs or labelled texts that are in memory, so that nothing is downloaded. MTEB itself is optional.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from apps.embeddings.example import EmbeddingExample
from core.errors import BackendUnavailable, DataError


def _mteb() -> Any:
    try:
        import mteb
    except ImportError as error:
        raise BackendUnavailable("mteb is not installed", hint="pip install mteb") from error
    return mteb


def as_mteb(pipeline: Any, name: str = "graft/model") -> Any:
    """An encoder for `mteb.evaluate`. Queries get the task's instruction, documents none; pairs and labels are queries.

    Raises:
        BackendUnavailable: mteb is not installed.
    """
    _mteb()
    from mteb.models import ModelMeta

    class Encoder:
        """MTEB's protocol over an `EmbeddingPipeline`."""

        mteb_model_meta = ModelMeta.create_empty({"name": name, "revision": "local", "embed_dim": pipeline.dimension})

        def encode(
            self,
            inputs: Any,
            *,
            task_metadata: Any,
            hf_split: str = "",
            hf_subset: str = "",
            prompt_type: Any = None,
            **options: Any,
        ) -> np.ndarray:
            texts = [text for batch in inputs for text in batch["text"]]
            kind = "document" if getattr(prompt_type, "value", prompt_type) == "document" else "query"
            prompt = task_metadata.prompt
            task = prompt.get("query", "") if isinstance(prompt, dict) else prompt
            return pipeline(texts, task=task or "", kind=kind)

        def similarity(self, a: Any, b: Any) -> Any:
            import torch

            left, right = (torch.nn.functional.normalize(torch.as_tensor(x).double(), dim=-1) for x in (a, b))
            return left @ right.T

        def similarity_pairwise(self, a: Any, b: Any) -> Any:
            import torch

            return torch.nn.functional.cosine_similarity(torch.as_tensor(a).double(), torch.as_tensor(b).double())

    return Encoder()


def as_task(
    examples: Sequence[EmbeddingExample], name: str = "LocalTask", *, train: Sequence[EmbeddingExample] = ()
) -> Any:
    """A task over examples of one kind: a search collection, graded pairs, or labelled texts.

    Args:
        train: labelled texts that a classifier is trained on; needed for labelled texts.

    Raises:
        DataError: examples of several kinds, triplets, or labelled texts without others to train on.
    """
    _mteb()
    kinds = {example.kind for example in examples}
    if kinds <= {"query", "document"}:
        return _search_task(examples, name)
    if kinds == {"pair"}:
        return _pair_task(examples, name)
    if kinds == {"labelled"}:
        if not train:
            raise DataError("a classification task needs texts to train on", field="train")
        return _label_task(examples, train, name)
    raise DataError(
        "no task fits these examples", got=sorted(kinds), expected="a search collection, graded pairs or labelled texts"
    )


def _metadata(name: str, kind: str, score: str, task: str) -> Any:
    from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=name, description="Examples in memory.", type=kind, dataset={"path": "local", "revision": "local"},
        eval_splits=["test"], eval_langs=["eng-Latn"], main_score=score, prompt={"query": task} if task else None,
    )  # fmt: skip


def _search_task(examples: Sequence[EmbeddingExample], name: str) -> Any:
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    queries = [example for example in examples if example.kind == "query"]
    documents = [example for example in examples if example.kind == "document"]

    class LocalRetrieval(AbsTaskRetrieval):
        """Documents and queries in memory."""

        metadata = _metadata(name, "Retrieval", "ndcg_at_10", queries[0].task)

        def load_data(self, *args: Any, **options: Any) -> None:
            rows = [{"id": str(d.id), "title": "", "text": d.text} for d in documents]
            asked = [{"id": str(q.id), "text": q.text} for q in queries]
            judged = {str(q.id): {n: int(g) for n, g in q.relevant or ()} for q in queries}
            split = {"corpus": Dataset.from_list(rows), "queries": Dataset.from_list(asked)}
            self.dataset = {"default": {"test": {**split, "relevant_docs": judged, "top_ranked": None}}}
            self.data_loaded = True

    return LocalRetrieval()


def _pair_task(examples: Sequence[EmbeddingExample], name: str) -> Any:
    from datasets import Dataset
    from mteb.abstasks.sts import AbsTaskSTS

    class LocalSts(AbsTaskSTS):
        """Graded pairs in memory."""

        metadata = _metadata(name, "STS", "cosine_spearman", examples[0].task)
        min_score, max_score = 0, 1

        def load_data(self, *args: Any, **options: Any) -> None:
            rows = [{"sentence1": e.text, "sentence2": e.text2, "score": e.score} for e in examples]
            self.dataset = {"test": Dataset.from_list(rows)}
            self.data_loaded = True

    return LocalSts()


def _label_task(examples: Sequence[EmbeddingExample], train: Sequence[EmbeddingExample], name: str) -> Any:
    from datasets import Dataset
    from mteb.abstasks.classification import AbsTaskClassification

    class LocalClassification(AbsTaskClassification):
        """Labelled texts in memory."""

        metadata = _metadata(name, "Classification", "accuracy", examples[0].task)

        def load_data(self, *args: Any, **options: Any) -> None:
            rows = {"train": train, "test": examples}
            self.dataset = {
                split: Dataset.from_list([{"text": e.text, "label": e.label} for e in part])
                for split, part in rows.items()
            }
            self.data_loaded = True

    return LocalClassification()


def evaluate(
    pipeline: Any, examples: Sequence[EmbeddingExample], *, train: Sequence[EmbeddingExample] = ()
) -> dict[str, float]:
    """MTEB's scores of `pipeline` on `examples`, from 0 to 1, by MTEB's names. `train`: as for `as_task`."""
    task = as_task(examples, train=train)
    found = _mteb().evaluate(as_mteb(pipeline), task, cache=None, show_progress_bar=False)
    (scores,) = found.task_results[0].scores["test"]
    return {name: value for name, value in scores.items() if isinstance(value, float)}
