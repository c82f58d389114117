"""Search, similarity, classification and clustering, scored as the field scores them; no model is needed.

Predictions are data: a cosine for a pair, a ranking [[document, score], …] for a query, a vector for a labelled text,
nothing for a document. Each metric takes the examples of its kind; where there are none it is skipped, with the reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from apps.embeddings import ranking
from apps.embeddings.example import EmbeddingExample
from core.errors import ConfigError, DataError
from core.evaluation.bootstrap import bootstrap_ci
from core.evaluation.evaluator import BaseEvaluator
from core.evaluation.report import Metric, Report

SEARCH: dict[str, Callable[[list[str], dict[str, float]], float]] = {
    "ndcg@10": ranking.ndcg,
    "recall@100": ranking.recall,
    "map": ranking.average_precision,
    "mrr@10": ranking.reciprocal_rank,
}
PAIRS = ("spearman", "pearson")
LABELLED = ("accuracy", "v_measure", "anisotropy")


class EmbeddingEvaluator(BaseEvaluator):
    """Metrics in percent, except `anisotropy`, the mean cosine of random pairs.

    Args:
        metrics: of `known`; all by default. bootstrap: resamples for intervals, 0 for none. seed: of everything random.
        shots: labelled texts of each class that the classifier is trained on, in `repeats` draws (MTEB, Muennighoff et
            al. 2022). fit: (vectors, labels) that they are drawn from; by default the scored texts, of which the rest
            is then tested. same_id: leave the document out that has the query's id.
    """

    name: ClassVar[str] = "embeddings"
    primary: ClassVar[str] = "ndcg@10"
    known: ClassVar[tuple[str, ...]] = (*SEARCH, *PAIRS, *LABELLED)

    def __init__(
        self,
        metrics: Sequence[str] | None = None,
        *,
        bootstrap: int = 1000,
        seed: int = 0,
        shots: int = 8,
        repeats: int = 10,
        fit: tuple[Any, Sequence[str]] | None = None,
        same_id: bool = True,
    ) -> None:
        super().__init__(metrics)
        if shots < 1 or repeats < 1:
            raise ConfigError("a classifier needs texts", where=f"shots={shots}, repeats={repeats}", hint="1 or more")
        self.fit = fit
        self.bootstrap, self.seed, self.shots, self.repeats, self.same_id = bootstrap, seed, shots, repeats, same_id

    def score(self, predictions: Sequence[Any], examples: Sequence[EmbeddingExample]) -> Report:
        """A report of all metrics. Raises `DataError` when a prediction is not what its example asks for."""
        self.check(predictions, examples)
        rows = [self._row(i, e, p) for i, (e, p) in enumerate(zip(examples, predictions))]
        _check_judged(examples)
        metrics: dict[str, Metric] = {}
        metrics.update(self._search(examples, predictions, rows))
        metrics.update(self._pairs(examples, predictions, rows))
        metrics.update(self._labelled(examples, predictions))
        chosen = {name: metrics[name] for name in self.metrics}
        order = [name for name in (self.primary, "spearman", "accuracy", *self.known) if name in chosen]
        primary = next((name for name in order if chosen[name].value is not None), self.metrics[0])
        worst = sorted((row for row in rows if "score" in row), key=lambda row: row["score"])[:20]
        return Report(self.name, chosen, self._signature(), rows, worst, primary)

    def _signature(self) -> dict[str, Any]:
        import scipy
        import sklearn

        return {
            "ranking": "trec_eval: ties by document id, descending; scores in single precision",
            "scipy": scipy.__version__,
            "scikit-learn": sklearn.__version__,
            "shots": self.shots,
            "repeats": self.repeats,
            "seed": self.seed,
            "bootstrap": self.bootstrap,
        }

    @staticmethod
    def _row(number: int, example: EmbeddingExample, prediction: Any) -> dict[str, Any]:
        wanted = {"pair": (int, float), "query": list, "triplet": list, "labelled": list}.get(example.kind)
        fits = {"pair": _is_number, "labelled": _is_vector}.get(example.kind, _is_ranking)
        if wanted and not (isinstance(prediction, wanted) and fits(prediction)):  # type: ignore[arg-type]
            expected = {"pair": "a cosine", "labelled": "a list of finite numbers"}.get(
                example.kind, "[[document id, score], …], each document once"
            )
            got = f"{prediction!r:.200}"
            raise DataError(f"prediction {number} does not fit a {example.kind}", got=got, expected=expected)
        row = {"id": example.id or str(number), "input": example.text, "kind": example.kind}
        if example.kind == "pair":
            row.update(reference=example.score, prediction=prediction, second=example.text2)
        elif example.kind in ("query", "triplet"):
            row.update(reference=sorted(_judged(example)), prediction=[name for name, _ in prediction[:10]])
        elif example.kind == "labelled":
            row.update(reference=example.label)
        return row

    # ---- search ------------------------------------------------------------------------------------------------

    def _search(self, examples: Any, predictions: Any, rows: Any) -> dict[str, Metric]:
        asked = [i for i, example in enumerate(examples) if example.kind in ("query", "triplet")]
        asked = [i for i in asked if any(grade >= 1 for grade in _judged(examples[i]).values())]
        if not asked:
            return {name: _skipped("no queries with relevant documents") for name in SEARCH}
        found: dict[str, list[float]] = {name: [] for name in SEARCH}
        for i in asked:
            run = [(str(n), float(s)) for n, s in predictions[i] if not (self.same_id and n == examples[i].id)]
            order, judged = ranking.ordered(run), _judged(examples[i])
            for name, metric in SEARCH.items():
                found[name].append(metric(order, judged))
            rows[i]["score"] = round(100 * found["ndcg@10"][-1], 2)
        return {name: self._mean(values) for name, values in found.items()}

    def _mean(self, values: list[float]) -> Metric:
        ci = None
        if self.bootstrap and len(values) > 1:
            total = np.array(values)
            ci = bootstrap_ci(total, lambda s: 100 * s[0] / len(values), n=self.bootstrap, seed=self.seed)
        return Metric(100 * float(np.mean(values)), len(values), ci, unit="%")

    # ---- pairs -------------------------------------------------------------------------------------------------

    def _pairs(self, examples: Any, predictions: Any, rows: Any) -> dict[str, Metric]:
        graded = [i for i, e in enumerate(examples) if e.kind == "pair" and e.score is not None]
        if len(graded) < 2:
            return {name: _skipped("no graded pairs") for name in PAIRS}
        wanted = np.array([examples[i].score for i in graded])
        given = np.array([float(predictions[i]) for i in graded])
        if np.ptp(wanted) == 0 or np.ptp(given) == 0:
            return {name: _skipped("all scores are equal") for name in PAIRS}
        from scipy.stats import pearsonr, rankdata, spearmanr

        for i, a, b in zip(graded, rankdata(wanted), rankdata(given)):
            rows[i]["score"] = round(100 * (1 - abs(a - b) / len(graded)), 2)
        rank, linear = 100 * spearmanr(given, wanted).statistic, 100 * pearsonr(given, wanted).statistic
        return {
            "spearman": Metric(float(rank), len(graded), self._interval(given, wanted), unit="%"),
            "pearson": Metric(float(linear), len(graded), unit="%"),
        }

    def _interval(self, given: np.ndarray, wanted: np.ndarray) -> tuple[float, float] | None:
        """Bootstrap interval of the rank correlation."""
        from scipy.stats import spearmanr

        if not self.bootstrap:
            return None
        draw = np.random.default_rng(self.seed)
        values = []
        for _ in range(min(self.bootstrap, 200)):
            chosen = draw.integers(0, len(given), len(given))
            values.append(100 * spearmanr(given[chosen], wanted[chosen]).statistic)
        low, high = np.nanpercentile(values, [2.5, 97.5])
        return float(low), float(high)

    # ---- labelled texts ----------------------------------------------------------------------------------------

    def _labelled(self, examples: Any, predictions: Any) -> dict[str, Metric]:
        chosen = [i for i, example in enumerate(examples) if example.kind == "labelled"]
        labels = np.array([examples[i].label for i in chosen])
        if len(set(labels.tolist())) < 2:
            return {name: _skipped("no texts of two classes or more") for name in LABELLED}
        lengths = {len(predictions[i]) for i in chosen}
        if len(lengths) > 1:
            raise DataError("the vectors are of different lengths", got=sorted(lengths)[:5])
        vectors = np.array([predictions[i] for i in chosen], dtype=np.float32)
        found = {"anisotropy": Metric(self._anisotropy(vectors), len(chosen), higher_is_better=False)}
        found["accuracy"] = self._accuracy(vectors, labels) if "accuracy" in self.metrics else _skipped("not asked for")
        found["v_measure"] = self._v_measure(vectors, labels) if "v_measure" in self.metrics else _skipped("not asked")
        return found

    def _accuracy(self, vectors: np.ndarray, labels: np.ndarray) -> Metric:
        """Mean accuracy of logistic regression on `shots` texts a class, over `repeats` draws."""
        from sklearn.linear_model import LogisticRegression

        known, names = (vectors, labels) if self.fit is None else (np.asarray(self.fit[0]), np.asarray(self.fit[1]))
        values, rest = [], np.arange(len(labels))
        for chosen in draws(names, self.shots, self.repeats, self.seed):
            if self.fit is None:
                rest = np.setdiff1d(np.arange(len(labels)), chosen)
            if not len(rest):
                return _skipped(f"no text is left beside {self.shots} a class")
            judge = LogisticRegression(max_iter=100).fit(known[chosen], names[chosen])
            values.append(100 * float(judge.score(vectors[rest], labels[rest])))
        low, high = np.percentile(values, [2.5, 97.5])
        return Metric(float(np.mean(values)), len(rest), (float(low), float(high)), "%")

    def _v_measure(self, vectors: np.ndarray, labels: np.ndarray) -> Metric:
        """V-measure of k-means with as many clusters as classes (Rosenberg and Hirschberg 2007)."""
        from sklearn.cluster import MiniBatchKMeans
        from sklearn.metrics import v_measure_score

        count = len(set(labels.tolist()))
        made = MiniBatchKMeans(count, batch_size=512, n_init=3, random_state=self.seed).fit(vectors)
        return Metric(100 * float(v_measure_score(labels, made.labels_)), len(labels), unit="%")

    def _anisotropy(self, vectors: np.ndarray) -> float:
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        draw = np.random.default_rng(self.seed)
        first, second = draw.integers(0, len(unit), (2, 4096))
        different = first != second
        return float((unit[first] * unit[second]).sum(1)[different].mean())


def draws(labels: np.ndarray, shots: int, repeats: int, seed: int) -> Iterator[list[int]]:
    """`repeats` times the places of `shots` texts of every class, as MTEB draws them: one shuffle, over and over."""
    order = list(range(len(labels)))
    for _ in range(repeats):
        np.random.RandomState(seed).shuffle(order)
        seen: Counter[str] = Counter()
        chosen = []
        for place in order:
            if seen[labels[place]] < shots:
                chosen.append(place)
                seen[labels[place]] += 1
        yield chosen


def _is_number(given: Any) -> bool:
    return isinstance(given, Real) and not isinstance(given, bool) and math.isfinite(given)


def _is_vector(given: Any) -> bool:
    try:
        values = np.asarray(given)
    except ValueError:
        return False
    return values.ndim == 1 and values.size > 0 and values.dtype.kind in "fiu" and bool(np.isfinite(values).all())


def _is_ranking(given: Any) -> bool:
    pairs = all(isinstance(hit, (list, tuple)) and len(hit) == 2 and _is_number(hit[1]) for hit in given)
    return pairs and len({hit[0] for hit in given}) == len(given)


def _check_judged(examples: Sequence[EmbeddingExample]) -> None:
    """Raise `DataError` when documents are given and relevant ones are not among them, with the first five."""
    names = {example.id for example in examples if example.kind == "document"}
    missing = [name for e in examples if e.kind == "query" for name, _ in e.relevant or () if name not in names]
    if names - {None} and missing:
        raise DataError(
            f"{len(missing)} judgements name documents that are not among the examples: {', '.join(missing[:5])}",
            field="relevant",
            hint="give the whole collection",
        )


def _judged(example: EmbeddingExample) -> dict[str, float]:
    if example.kind == "triplet":
        return {f"pos{i}": 1.0 for i in range(len(example.pos))}
    return dict(example.relevant or ())


def _skipped(reason: str) -> Metric:
    return Metric(None, 0, skipped=reason)
