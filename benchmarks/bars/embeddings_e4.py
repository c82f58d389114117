"""Mined negatives are those that sentence-transformers mines from the same vectors.

Random collections, several margins and numbers of negatives; both sides get the same vectors. The value is the share
of queries whose negatives differ.
"""

from __future__ import annotations

from typing import Any

from benchmarks.bar import Bar, Measured, Setting


def measure(setting: Setting) -> Measured:
    import numpy as np

    different, compared, dropped = 0, 0, 0
    for case in range(3 if setting.quick else 12):
        random = np.random.default_rng(case)
        count, margin = (3, 5, 7)[case % 3], (0.05, 0.2)[case % 2]
        documents, queries = [f"d{i}" for i in range(400)], [f"q{i}" for i in range(60)]
        vectors = {text: random.normal(size=12).astype(np.float32) for text in (*documents, *queries)}
        for place, query in enumerate(queries):
            vectors[query] += 1.5 * vectors[documents[place]]
        ours = mined(vectors, queries, documents, count, margin)
        theirs = mined_by_library(vectors, queries, documents, count, margin)
        plain = mined(vectors, queries, documents, count, None)
        for query in queries:
            if len(ours[query]) == count:
                compared += 1
                different += ours[query] != theirs.get(query)
                dropped += ours[query] != plain[query]
    return Measured(
        different / compared,
        different == 0 and compared > 100 and dropped > 0,
        details={"queries": compared, "of these changed by the margin": dropped},
    )


def mined(vectors: Any, queries: Any, documents: Any, count: int, margin: float | None) -> dict[str, list[str]]:
    import numpy as np

    from apps.embeddings.mining import mine

    def teacher(texts: Any, kind: str) -> Any:
        return np.stack([vectors[text] for text in texts])

    places = [[i] for i in range(len(queries))]
    found = mine(queries, documents, places, teacher=teacher, count=count, margin=margin, depth=10 * count + 1)
    return {query: [documents[i] for i in numbers] for query, numbers in zip(queries, found.negatives)}


def mined_by_library(vectors: Any, queries: Any, documents: Any, count: int, margin: float) -> dict[str, list[str]]:
    import numpy as np
    import torch
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    class Given:
        """Vectors by table, in the shape of a model."""

        device, prompts = "cpu", {}

        def encode(self, texts: Any, **options: Any) -> Any:
            return torch.nn.functional.normalize(torch.tensor(np.stack([vectors[t] for t in texts])), dim=-1)

        encode_query = encode_document = encode

        def similarity(self, a: Any, b: Any) -> Any:
            return a @ b.T

        def similarity_pairwise(self, a: Any, b: Any) -> Any:
            return (a * b).sum(1)

    data = Dataset.from_dict({"anchor": queries, "positive": documents[: len(queries)]})
    made = mine_hard_negatives(
        data, Given(), corpus=documents, num_negatives=count, relative_margin=margin, output_format="n-tuple",
        verbose=False,
    )  # fmt: skip
    return {row["anchor"]: [row[f"negative_{i}"] for i in range(1, count + 1)] for row in made}


BAR = Bar(
    "embeddings.E4",
    "positive-aware mining finds what sentence-transformers finds",
    "share of queries that differ",
    "0",
    "cpu",
    0.5,
    measure,
)
