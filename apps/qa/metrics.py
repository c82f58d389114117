"""BioASQ's measures (Balikas et al. 2013): exact and ideal answers, documents; and citations. Plain functions.

Names are compared lower-cased without punctuation, articles and double spaces. Of a factoid's candidates the first five
count. Average precision of documents is divided by min(relevant, 10), as BioASQ does.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def plain(name: str) -> str:
    """A name as it is compared."""
    return " ".join(_ARTICLES.sub(" ", re.sub(r"[^\w\s]", " ", name.lower())).split())


def is_one_of(name: str, synonyms: Iterable[str]) -> bool:
    return plain(name) in {plain(other) for other in synonyms}


def macro_f1(predicted: Sequence[str], wanted: Sequence[str], classes: Sequence[str]) -> float:
    """Mean F1 over the classes that occur among answers or predictions."""
    scores = []
    for name in classes:
        right = sum(p == w == name for p, w in zip(predicted, wanted))
        total = sum(p == name for p in predicted) + sum(w == name for w in wanted)
        if total:
            scores.append(2 * right / total)
    return sum(scores) / len(scores) if scores else 0.0


def factoid(candidates: Sequence[str], synonyms: Iterable[str]) -> tuple[float, float, float]:
    """(strict, lenient, reciprocal rank) of at most five candidates."""
    names = set(synonyms)
    ranks = [rank for rank, name in enumerate(candidates[:5], 1) if is_one_of(name, names)]
    if not ranks:
        return 0.0, 0.0, 0.0
    return float(ranks[0] == 1), 1.0, 1 / ranks[0]


def name_list(candidates: Sequence[str], items: Sequence[Sequence[str]]) -> tuple[float, float, float]:
    """(precision, recall, F1) of a list; an item counts once, however often it is named."""
    names = list(dict.fromkeys(plain(name) for name in candidates))
    found = {number for number, item in enumerate(items) if any(is_one_of(name, item) for name in names)}
    right = [name for name in names if any(is_one_of(name, item) for item in items)]
    precision = len(right) / len(names) if names else 0.0
    recall = len(found) / len(items) if items else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def holds(passage: str, item: Sequence[str]) -> bool:
    """Whether a passage names an item, by any of its synonyms, in whole words."""
    text = f" {plain(passage)} "
    return any(f" {name} " in text for name in map(plain, item) if name)


def citations(
    cited: Sequence[str], shown: Sequence[str], items: Sequence[Sequence[str]]
) -> tuple[float | None, float | None]:
    """(precision, recall) of the passages that an answer cites; to support it, a passage has to name it.

    After Gao et al. (2023), who let a model judge what passages entail.
    Precision is the share of cited passages that hold a right item, None when nothing is cited; recall the share of the
    items held by any passage `shown` that a cited one holds, None when no passage holds one.
    """
    once = list(dict.fromkeys(cited))
    supported = [item for item in items if any(holds(passage, item) for passage in shown)]
    precision = sum(any(holds(passage, item) for item in items) for passage in once) / len(once) if once else None
    found = sum(any(holds(passage, item) for passage in once) for item in supported)
    return precision, found / len(supported) if supported else None


def rouge_2(candidate: str, reference: str) -> tuple[float, float]:
    """(recall, F1) of word pairs (Lin 2004)."""
    return _overlap(_pairs(candidate, 0, False), _pairs(reference, 0, False))


def rouge_su4(candidate: str, reference: str) -> tuple[float, float]:
    """(recall, F1) of word pairs with at most four words between, and single words."""
    return _overlap(_pairs(candidate, 4, True), _pairs(reference, 4, True))


def _pairs(text: str, gap: int, single: bool) -> Counter:
    words = re.findall(r"\w+", text.lower())
    pairs = Counter((a, b) for i, a in enumerate(words) for b in words[i + 1 : i + 2 + gap])
    return pairs + Counter((word,) for word in words) if single else pairs


def _overlap(candidate: Counter, reference: Counter) -> tuple[float, float]:
    both = sum((candidate & reference).values())
    if not both:
        return 0.0, 0.0
    recall, precision = both / sum(reference.values()), both / sum(candidate.values())
    return recall, 2 * recall * precision / (recall + precision)


def average_precision(ranked: Sequence[str], relevant: set[str]) -> float:
    """Average precision of the first ten documents, divided by min(relevant, 10)."""
    hits, total = 0, 0.0
    for rank, name in enumerate(ranked[:10], 1):
        if name in relevant:
            hits += 1
            total += hits / rank
    return total / min(len(relevant), 10) if relevant else 0.0


def geometric_mean(values: Sequence[float], floor: float = 0.01) -> float:
    """GMAP: the geometric mean, each value raised by `floor` so that one zero does not decide all."""
    return math.exp(sum(math.log(value + floor) for value in values) / len(values)) if values else 0.0


def found_documents(ranked: Sequence[Sequence[str]], relevant: Sequence[set[str]]) -> dict[str, float]:
    """Means over questions of the first ten documents: precision, recall, F1, MAP; and GMAP. 0 to 1."""
    values = [average_precision(names, own) for names, own in zip(ranked, relevant)]
    shares = []
    for names, own in zip(ranked, relevant):
        right = len(set(names[:10]) & own)
        precision, recall = right / max(1, len(names[:10])), right / max(1, len(own))
        shares.append((precision, recall, 2 * precision * recall / (precision + recall) if right else 0.0))
    means = [sum(column) / len(shares) for column in zip(*shares)] if shares else [0.0] * 3
    found = dict(zip(("precision", "recall", "f1"), means))
    return {**found, "map": sum(values) / max(1, len(values)), "gmap": geometric_mean(values)}
