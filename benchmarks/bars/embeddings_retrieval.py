"""Exact search is exact and fast: the ten nearest against brute force in float64, and 100 queries over 100,000 vectors.

Half of the random cases hold copies of vectors, so that equal scores decide. The value is the time of the second
part; any case that differs fails the bar.
"""

from __future__ import annotations

import time

from benchmarks.bar import Bar, Measured, Setting

SECONDS = 1.0


def measure(setting: Setting) -> Measured:
    import numpy as np

    from core.retrieval import DenseIndex

    random, wrong, cases = np.random.default_rng(0), 0, 0
    for collection in range(5 if setting.quick else 100):
        vectors = random.normal(size=(500, 24)).astype(np.float32)
        if collection % 2:
            vectors[random.integers(0, 500, 200)] = vectors[random.integers(0, 5, 200)]
        ids = [f"{i:04d}" for i in random.permutation(500)]
        queries = random.normal(size=(100, 24)).astype(np.float32)
        index = DenseIndex(ids, vectors, block=(64, 4096)[collection % 2])
        names = np.array(ids)
        wide = vectors.astype(np.float64)
        lengths = np.sqrt((wide * wide).sum(1))
        for query, hits in zip(queries.astype(np.float64), index.search(queries, 10)):
            unit = query / np.sqrt((query * query).sum())
            scores = (wide * unit).sum(1) / lengths
            cases += 1
            wrong += [hit.id for hit in hits] != names[np.lexsort((names, -scores))[:10]].tolist()
    count = 10_000 if setting.quick else 100_000
    big = DenseIndex([str(i) for i in range(count)], random.normal(size=(count, 384)).astype(np.float32))
    asked = random.normal(size=(100, 384)).astype(np.float32)
    big.search(asked[:2], 10)
    start = time.perf_counter()
    big.search(asked, 10)
    seconds = time.perf_counter() - start
    return Measured(
        round(seconds, 3), wrong == 0 and seconds < SECONDS, details={"cases": cases, "that differ": wrong, "n": count}
    )


BAR = Bar(
    "embeddings.retrieval",
    "exact dense search: equal to float64 brute force, 100 queries over 100,000 vectors of 384 dimensions",
    "s",
    f"< {SECONDS:g} s on a CPU, no case differs",
    "cpu",
    1,
    measure,
)
