"""A word graph as text: every triple a short sentence, for languages with a graph and little else.

Gurgurov et al. 2025 adapt small multilingual encoders to low-resource languages on such sentences, made from ConceptNet
(Speer et al. 2017). The relations are those of ConceptNet; the phrases are ours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from apps.lm.data import READERS, TextExample
from core.data.rows import BadRows
from core.errors import DataError, nearest

PHRASES = {
    "Antonym": "is the opposite of", "AtLocation": "is found at", "CapableOf": "is able to", "Causes": "leads to",
    "CausesDesire": "makes one want", "CreatedBy": "was made by", "DefinedAs": "means", "DerivedFrom": "comes from",
    "Desires": "wants", "DistinctFrom": "is not the same as",
    "EtymologicallyDerivedFrom": "has its origin in", "EtymologicallyRelatedTo": "shares its origin with",
    "FormOf": "is a form of", "HasA": "has", "HasContext": "is said in the context of",
    "HasFirstSubevent": "begins with", "HasLastSubevent": "ends with", "HasPrerequisite": "first needs",
    "HasProperty": "can be described as", "HasSubevent": "includes", "InstanceOf": "is one example of",
    "IsA": "is a kind of", "LocatedNear": "is close to", "MadeOf": "consists of", "MannerOf": "is a way of",
    "MotivatedByGoal": "is done for the sake of", "ObstructedBy": "is held back by", "PartOf": "belongs to",
    "ReceivesAction": "can be", "RelatedTo": "has to do with", "SimilarTo": "resembles", "SymbolOf": "stands for",
    "Synonym": "means the same as", "UsedFor": "serves for",
}  # fmt: skip
SEED, SHARES = 42, {"train": (0.0, 0.8), "dev": (0.8, 0.9), "test": (0.9, 1.0)}


@READERS.register("triples")
def triples(path: str, *, split: str | None = None, on_bad: BadRows, lang: str = "") -> Iterator[TextExample]:
    """Sentences "start phrase end." from lines of start, relation and end, or from ConceptNet's own table.

    Columns are parted by tabs. Of ConceptNet's table only edges are taken whose ends are both in `lang`, where it is
    given. Triples that say of a word that it is itself are left out, and so are repetitions. `split` is train, dev or
    test: 80, 10 and 10 % of the shuffled sentences.
    """
    place = Path(path)
    if not place.is_file():
        raise DataError("file not found", file=place)
    if split is not None and split not in SHARES:
        raise DataError("no such split", file=place, got=split, expected=" or ".join(SHARES))
    found: dict[str, None] = {}
    with place.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                sentence = _sentence(line.rstrip("\n").split("\t"), lang)
            except ValueError as error:
                on_bad.handle(DataError(str(error), file=place, line=number))
                continue
            if sentence:
                found[sentence] = None
    sentences = list(found)
    random.Random(SEED).shuffle(sentences)
    first, last = SHARES[split] if split else (0.0, 1.0)
    chosen = sentences[round(first * len(sentences)) : round(last * len(sentences))]
    yield from (TextExample(text, f"{place.name}:{number}", lang) for number, text in enumerate(chosen, 1))


def _sentence(cells: list[str], lang: str) -> str | None:
    """One edge as a sentence; None for one that is not asked for. Raises ValueError for a line that is no edge."""
    if len(cells) == 5 and cells[0].startswith("/a/"):
        relation, ends = cells[1].rpartition("/")[2], [cell.split("/") for cell in cells[2:4]]
        if any(len(end) < 4 or (lang and end[2] != lang) for end in ends) or relation == "ExternalURL":
            return None
        start, end = (end[3].replace("_", " ") for end in ends)
    elif len(cells) == 3:
        start, relation, end = (cell.strip() for cell in cells)
    else:
        raise ValueError(f"{len(cells)} columns, not start, relation and end")
    if relation not in PHRASES:
        raise ValueError(f"unknown relation '{relation}'. {nearest(relation, PHRASES) or ''}".strip())
    if not start or not end:
        raise ValueError("a triple without one of its ends")
    return None if start == end else f"{start} {PHRASES[relation]} {end}."
