"""The readers: one for each layout in which embedding data comes, all giving `EmbeddingExample`s.

A reader is a generator, `reader(path, *, split=None, on_bad=None, ...)`; it names file, line and field of whatever is
wrong and hands a malformed row to `on_bad` (None raises). `task=` is the instruction of a source's queries. Readers of
search collections give all documents first, then the queries; judgements of documents that do not exist are an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apps.embeddings.example import EmbeddingExample, example_from, to_jsonl
from apps.embeddings.reading import (
    collection,
    fold_of,
    grade_of,
    qrels,
    rejects,
    required,
    smart_fields,
    table,
    texts_by_id,
)
from core.data.readers import Readers
from core.data.reading import required as file_of
from core.data.rows import jsonl as json_lines
from core.errors import DataError

__all__ = ["READERS", "EmbeddingExample", "example_from", "load_data", "to_jsonl"]

READERS: Readers[EmbeddingExample] = Readers()
load_data = READERS.load
STAND_INS = {"sts": "embedded_pairs", "labels": "embedded_labels"}


@READERS.register("jsonl")
def jsonl(
    path: str | Path, *, split: str | None = None, on_bad: Any = None, task: str = ""
) -> Iterator[EmbeddingExample]:
    """The simple form: rows of `EmbeddingExample`'s fields; {"query", "pos", "neg"} for triplets."""
    file, bad = file_of(path, f"{split or 'train'}.jsonl"), rejects(on_bad)
    for number, row in json_lines(file, bad):
        try:
            example = example_from(row, task=task, file=file, line=number)
        except DataError as error:
            bad.handle(error)
            continue
        yield example


@READERS.register("sts")
def sts(
    path: str | Path,
    *,
    split: str | None = None,
    on_bad: Any = None,
    task: str = "Retrieve semantically similar text",
    columns: tuple[int, int, int] | list[int] = (0, 1, 2),
    top: float = 5.0,
) -> Iterator[EmbeddingExample]:
    """Graded pairs, .csv or .tsv without a header: `columns` are the places of both sentences and of the score.

    Args:
        top: the largest score; it becomes 1.
    """
    if len(columns) != 3 or not all(isinstance(place, int) and place >= 0 for place in columns) or top <= 0:
        got = f"columns {columns}, top {top}"
        raise DataError("no graded pairs", got=got, expected="three places of columns from 0 on, and top above 0")
    for file, number, cells in table(path, split, on_bad):
        try:
            row = {"text": cells[columns[0]], "text2": cells[columns[1]], "score": float(cells[columns[2]]) / top}
            example = example_from(row, task=task, file=file, line=number)
        except (IndexError, ValueError):
            expected = f"texts in columns {columns[0]} and {columns[1]}, a number in {columns[2]}, counted from 0"
            rejects(on_bad).handle(
                DataError("no graded pair", file=file, line=number, got=cells, expected=expected, hint="set columns")
            )
            continue
        except DataError as error:
            rejects(on_bad).handle(error)
            continue
        yield example


@READERS.register("labels")
def labels(
    path: str | Path,
    *,
    split: str | None = None,
    on_bad: Any = None,
    task: str = "Identify the category of the text",
    text: str = "text",
    label: str = "category",
    fold: int | None = None,
    folds: int = 5,
) -> Iterator[EmbeddingExample]:
    """Texts with classes: .csv or .tsv with a header; `text` and `label` are names of columns.

    Args:
        fold: of `folds` shuffled parts of equal class shares, 0 first; split "test" is that part, any other the rest.
    """
    header: list[str] = []
    rows: list[EmbeddingExample] = []
    for file, number, cells in table(path, None, on_bad):
        if not header:
            header = cells
            for name in (text, label):
                if name not in header:
                    raise DataError(f"no column '{name}'", file=file, line=1, got=header, hint="set text and label")
            continue
        try:
            row = {"text": cells[header.index(text)], "label": cells[header.index(label)]}
            rows.append(example_from(row, task=task, file=file, line=number))
        except IndexError:
            rejects(on_bad).handle(DataError("too few columns", file=file, line=number, got=cells))
        except DataError as error:
            rejects(on_bad).handle(error)
    if fold is None:
        yield from rows
        return
    held = fold_of([str(row.label) for row in rows], fold, folds)
    yield from (row for row, out in zip(rows, held) if out == (split == "test"))


@READERS.register("beir")
def beir(
    path: str | Path,
    *,
    split: str | None = None,
    on_bad: Any = None,
    task: str = "Given a question, retrieve passages that answer it",
    triplets: bool = False,
) -> Iterator[EmbeddingExample]:
    """BEIR (Thakur et al. 2021): corpus.jsonl, queries.jsonl, qrels/{split}.tsv.

    Args:
        triplets: give each query with its relevant documents as text, to train on, instead of the collection.
    """
    folder, bad = required(path), rejects(on_bad)
    documents, queries = (
        texts_by_id(json_lines(required(file), bad), file, bad)
        for file in (folder / "corpus.jsonl", folder / "queries.jsonl")
    )
    judged = qrels(folder / "qrels" / f"{split or 'test'}.tsv", documents, queries)
    yield from collection(documents, [(n, t) for n, t in queries.items() if n in judged], judged, task, triplets)


@READERS.register("smart")
def smart(
    path: str | Path,
    *,
    split: str | None = None,
    on_bad: Any = None,
    task: str = "Given a question, retrieve abstracts that are about it",
) -> Iterator[EmbeddingExample]:
    """The SMART layout of Cranfield and CISI: *.ALL with .I .T .W fields, *.qry, and qrels.

    A document is title and text; one without either is left out, and so are its judgements. Grades below 0 (Cranfield's
    −1) count as not relevant.
    """
    folder = required(path)
    if not folder.is_dir():
        raise DataError("no folder", file=folder, hint="give the folder of *.ALL, *.qry and qrels")
    found = {}
    for end in ("ALL", "qry"):
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() == f".{end.lower()}")
        if not files:
            raise DataError(f"no .{end} file in the folder", file=folder)
        found[end] = smart_fields(files[0])
    documents = {name: " ".join(f"{part['T']} {part['W']}".split()) for name, part in found["ALL"].items()}
    documents = {name: text for name, text in documents.items() if text}
    rows = sorted(folder.glob("*qrels*")) or sorted(folder.glob("*.REL"))
    if not rows:
        raise DataError("no qrels in the folder", file=folder)
    judged: dict[str, dict[str, float]] = defaultdict(dict)
    missing = []
    for number, line in enumerate(rows[0].read_text(encoding="utf-8").splitlines(), 1):
        cells = line.split()
        if len(cells) < 2 or not cells[0].isdigit():
            continue
        grade = grade_of(cells[-1]) if len(cells) == 3 else 1.0
        if grade is None:
            raise DataError("the grade is no number", file=rows[0], line=number, got=line)
        if cells[1] in documents:
            judged[cells[0]][cells[1]] = max(grade, 0.0)
        elif cells[1] not in found["ALL"]:
            missing.append(cells[1])
    if missing:
        raise DataError(
            f"{len(missing)} judgements name documents that are not there: {', '.join(missing[:5])}",
            file=rows[0],
            hint="take all files of one release",
        )
    queries = [(name, " ".join(f"{part['T']} {part['W']}".split())) for name, part in found["qry"].items()]
    yield from collection(documents, [(n, t) for n, t in queries if n in judged and t], judged, task, False)


@READERS.register("embedded")
def embedded(
    path: str | Path | None = None, *, split: str | None = None, on_bad: Any = None, task: str = ""
) -> Iterator[EmbeddingExample]:
    """Everyday questions and answers that ship with the project: triplets; as split "test" a search collection."""
    from apps.embeddings import everyday

    yield from everyday.collection(task) if split == "test" else everyday.triplets(task)


@READERS.register("embedded_pairs")
def embedded_pairs(
    path: str | Path | None = None, *, split: str | None = None, on_bad: Any = None, task: str = ""
) -> Iterator[EmbeddingExample]:
    """Pairs of everyday questions, graded by whether they share the answer or the topic."""
    from apps.embeddings import everyday

    yield from everyday.pairs(task, split)


@READERS.register("embedded_labels")
def embedded_labels(
    path: str | Path | None = None, *, split: str | None = None, on_bad: Any = None, task: str = ""
) -> Iterator[EmbeddingExample]:
    """Everyday questions with their topic."""
    from apps.embeddings import everyday

    yield from everyday.topics(task, split)
