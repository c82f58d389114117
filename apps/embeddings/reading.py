"""Files of the field's layouts, read row by row: tables, judgements, SMART entries. Nothing here knows of readers."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from apps.embeddings.example import EmbeddingExample
from core.data import reading
from core.data.rows import BadRows
from core.errors import DataError


def rejects(on_bad: Any) -> BadRows:
    """What a malformed row does: the given policy, or raising."""
    return BadRows() if on_bad in (None, "raise") else on_bad


def required(path: str | Path | None) -> Path:
    """A file or folder that exists. Raises `DataError` otherwise."""
    return Path(path) if path and Path(path).is_dir() else reading.required(path)


def fold_of(classes: list[str], fold: int, folds: int) -> list[bool]:
    """Whether each row is in the part `fold`: the folds of scikit-learn's StratifiedKFold with seed 0."""
    if not 0 <= fold < folds:
        raise DataError("no such fold", field="fold", got=fold, expected=f"0 to {folds - 1}")
    if folds < 2 or max(Counter(classes).values(), default=0) < folds:
        raise DataError(
            "too few texts for the folds", field="folds", got=folds, expected="2 to the texts of the largest class"
        )
    from sklearn.model_selection import StratifiedKFold

    parts = StratifiedKFold(folds, shuffle=True, random_state=0).split(classes, classes)
    chosen = set(next(islice(parts, fold, None))[1].tolist())
    return [number in chosen for number in range(len(classes))]


def table(path: str | Path, split: str | None, on_bad: Any) -> Iterator[tuple[Path, int, list[str]]]:
    """(file, line, cells) of a table; a folder and a split name the file in it."""
    place = required(path)
    if place.is_dir():
        found = [f for end in ("csv", "tsv") for f in sorted(place.glob(f"*{split or 'train'}.{end}"))]
        if not found:
            raise DataError(f"no {split or 'train'}.csv or .tsv in the folder", file=place)
        place = found[0]
    with open(place, encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, delimiter="\t" if place.suffix == ".tsv" else ",")
        try:
            for cells in reader:
                if cells:
                    yield place, reader.line_num, cells
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"not a table: {error}", file=place, line=reader.line_num) from error


def texts_by_id(rows: Iterable[tuple[int, dict]], file: Path, bad: BadRows) -> dict[str, str]:
    """Texts of a BEIR file by their ids, a title in front. A row without either, or of a known id, is a bad row."""
    found: dict[str, str] = {}
    for number, row in rows:
        name = row.get("_id", row.get("id"))
        parts = [row.get("title") or "", row.get("text") or ""]
        if name in (None, "") or isinstance(name, (list, dict)) or not all(isinstance(part, str) for part in parts):
            bad.handle(DataError("a row needs _id and text", file=file, line=number, got=row))
        elif not (text := " ".join(parts).strip()):
            bad.handle(DataError("the text is empty", file=file, line=number, field="text", got=row))
        elif str(name) in found:
            bad.handle(DataError("the id stands twice", file=file, line=number, field="_id", got=name))
        else:
            found[str(name)] = text
    return found


def qrels(file: Path, documents: dict[str, str], queries: dict[str, str]) -> dict[str, dict[str, float]]:
    """Judgements by query, from lines of query, document and grade apart by tabs; the first line may be a header.

    Raises:
        DataError: a line that is none, no line at all, or names that are in neither file, the first five of them.
    """
    judged: dict[str, dict[str, float]] = defaultdict(dict)
    missing: dict[str, list[str]] = {"documents": [], "queries": []}
    for number, line in enumerate(required(file).read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        cells = line.split("\t")
        if number == 1 and len(cells) >= 2 and grade_of(cells[-1]) is None and cells[-1].strip() not in documents:
            continue
        name, document = cells[0], cells[2] if len(cells) == 4 else cells[1] if len(cells) > 1 else ""
        grade = grade_of(cells[-1]) if len(cells) > 2 else 1.0
        if len(cells) not in (2, 3, 4) or grade is None:
            raise DataError("a judgement is query, document, grade, apart by tabs", file=file, line=number, got=line)
        for kind, known, given in (("documents", documents, document), ("queries", queries, name)):
            if given not in known:
                missing[kind].append(given)
        judged[name][document] = grade
    for kind, names in missing.items():
        if names:
            raise DataError(
                f"{len(names)} judgements name {kind} that are not there: {', '.join(names[:5])}",
                file=file,
                hint="take qrels, corpus and queries of one release",
            )
    if not judged:
        raise DataError("there are no judgements", file=file)
    return judged


def grade_of(cell: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def collection(
    documents: dict[str, str],
    queries: Iterable[tuple[str, str]],
    judged: dict[str, dict[str, float]],
    task: str,
    triplets: bool,
) -> Iterator[EmbeddingExample]:
    """Documents and then queries; or queries with their relevant texts, to train on."""
    if not triplets:
        for name, text in documents.items():
            yield EmbeddingExample(text, id=name)
    for name, text in queries:
        if triplets:
            right = tuple(documents[d] for d, grade in judged[name].items() if grade > 0)
            if right:
                yield EmbeddingExample(text, pos=right, id=name, task=task)
        else:
            yield EmbeddingExample(text, relevant=tuple(judged[name].items()), id=name, task=task)


def smart_fields(file: Path) -> dict[str, dict[str, str]]:
    """The fields of each entry of a SMART file, by entry."""
    parts = re.split(r"(?m)^\.I\s+(\d+)\s*$", file.read_text(encoding="latin-1"))
    found = {}
    for name, body in zip(parts[1::2], parts[2::2]):
        fields: dict[str, str] = defaultdict(str)
        for mark, text in re.findall(r"(?ms)^\.([A-Z])\s*\n(.*?)(?=^\.[A-Z]\s*$|\Z)", body):
            fields[mark] += text
        found[name] = fields
    return found
