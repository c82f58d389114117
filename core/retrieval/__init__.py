"""Finding documents: BM25, exact dense search, approximate search, and the fusion of several rankings.

    index = DenseIndex(ids, vectors)
    index.search(query_vectors, k=10)[0]      # [Hit("doc7", 0.83), …]
    index.save("index"); load_index("index")  # memory-mapped

Every index answers a list of queries with a list of hits for each, best first, equal scores in the order of the ids.
Nothing here knows of models or apps: dense indexes take vectors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.retrieval.ann import AnnIndex
    from core.retrieval.bm25 import Bm25Index
    from core.retrieval.dense import DenseIndex
    from core.retrieval.fusion import reciprocal_rank_fusion, weighted_sum
    from core.retrieval.hits import Hit
    from core.retrieval.store import load_index

_PLACES = {
    "AnnIndex": "ann",
    "Bm25Index": "bm25",
    "DenseIndex": "dense",
    "Hit": "hits",
    "load_index": "store",
    "reciprocal_rank_fusion": "fusion",
    "weighted_sum": "fusion",
}
__all__ = [
    "AnnIndex",
    "Bm25Index",
    "DenseIndex",
    "Hit",
    "load_index",
    "reciprocal_rank_fusion",
    "weighted_sum",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'core.retrieval' has no attribute '{name}'")
    return getattr(importlib.import_module(f"core.retrieval.{_PLACES[name]}"), name)
