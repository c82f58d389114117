"""The readers: one for each layout in which embedding data comes, all giving `EmbeddingExample`s.

A reader is a generator, `reader(path, *, split=None, on_bad=None, ...)`; it names file, line and field of whatever is
wrong and hands a malformed row to `on_bad` (None raises). `task=` is the instruction of a source's queries. Readers of
search collections give all documents first, then the queries; judgements of documents that do not exist are an error.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from apps.embeddings.example import EmbeddingExample, example_from, to_jsonl
from core.config.registry import Registry
from core.data.rows import BadRows
from core.data.rows import jsonl as json_lines
from core.errors import DataError

__all__ = ["READERS", "EmbeddingExample", "example_from", "load_data", "to_jsonl"]

Reader = Callable[..., Iterator[EmbeddingExample]]
READERS: Registry[Reader] = Registry("reader")
STAND_INS = {"sts": "embedded_pairs", "labels": "embedded_labels"}


def load_data(
    path: str | Path | None = None,
    reader: str = "jsonl",
    *,
    split: str | None = None,
    limit: int | None = None,
    on_bad: Any = None,
    **arguments: Any,
) -> list[EmbeddingExample]:
    """Read examples into a list: `load_data("scifact", "beir", split="test")`.

    Raises:
        ConfigError: unknown reader. DataError: unusable file or row.
    """
    return list(islice(READERS.get(reader)(path, split=split, on_bad=on_bad, **arguments), limit))


def _bad(on_bad: Any) -> BadRows:
    return BadRows() if on_bad in (None, "raise") else on_bad


def _required(path: str | Path | None) -> Path:
    if path is None:
        raise DataError("the reader needs a path", hint="set path: in the source")
    if not Path(path).exists():
        raise DataError("file not found", file=path)
    return Path(path)


@READERS.register("jsonl")
def jsonl(
    path: str | Path, *, split: str | None = None, on_bad: Any = None, task: str = ""
) -> Iterator[EmbeddingExample]:
    """The simple form: rows of `EmbeddingExample`'s fields; {"query", "pos", "neg"} for triplets."""
    file, bad = _required(path), _bad(on_bad)
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
    for file, number, cells in _table(path, split, on_bad):
        try:
            row = {"text": cells[columns[0]], "text2": cells[columns[1]], "score": float(cells[columns[2]]) / top}
            example = example_from(row, task=task, file=file, line=number)
        except (IndexError, ValueError) as error:
            _bad(on_bad).handle(
                DataError(f"no graded pair: {error}", file=file, line=number, got=cells, hint="check columns")
            )
            continue
        except DataError as error:
            _bad(on_bad).handle(error)
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
    for file, number, cells in _table(path, None, on_bad):
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
            _bad(on_bad).handle(DataError("too few columns", file=file, line=number, got=cells))
        except DataError as error:
            _bad(on_bad).handle(error)
    if fold is None:
        yield from rows
        return
    held = _fold_of([str(row.label) for row in rows], fold, folds)
    yield from (row for row, out in zip(rows, held) if out == (split == "test"))


def _fold_of(classes: list[str], fold: int, folds: int) -> list[bool]:
    """Whether each row is in the part `fold`: the folds of scikit-learn's StratifiedKFold with seed 0."""
    if not 0 <= fold < folds:
        raise DataError("no such fold", field="fold", got=fold, expected=f"0 to {folds - 1}")
    from sklearn.model_selection import StratifiedKFold

    parts = StratifiedKFold(folds, shuffle=True, random_state=0).split(classes, classes)
    chosen = set(next(islice(parts, fold, None))[1].tolist())
    return [number in chosen for number in range(len(classes))]


def _table(path: str | Path, split: str | None, on_bad: Any) -> Iterator[tuple[Path, int, list[str]]]:
    """(file, line, cells) of a table; a folder and a split name the file in it."""
    place = _required(path)
    if place.is_dir():
        found = [f for end in ("csv", "tsv") for f in sorted(place.glob(f"*{split or 'train'}.{end}"))]
        if not found:
            raise DataError(f"no {split or 'train'}.csv or .tsv in the folder", file=place)
        place = found[0]
    with open(place, encoding="utf-8", newline="") as handle:
        reader = csv.reader(handle, delimiter="\t" if place.suffix == ".tsv" else ",")
        try:
            for cells in reader:
                if cells:
                    yield place, reader.line_num, cells
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"not a table: {error}", file=place, line=reader.line_num) from error


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
    folder, bad = _required(path), _bad(on_bad)
    documents = {}
    for number, row in json_lines(_required(folder / "corpus.jsonl"), bad):
        name, body = str(row.get("_id", row.get("id", ""))), f"{row.get('title') or ''} {row.get('text') or ''}".strip()
        if not name or not body:
            bad.handle(DataError("a document needs _id and text", file=folder / "corpus.jsonl", line=number, got=row))
            continue
        documents[name] = body
    judged = _qrels(folder / "qrels" / f"{split or 'test'}.tsv", documents, folder / "corpus.jsonl")
    queries = [
        (str(row.get("_id", row.get("id"))), str(row.get("text", "")))
        for _, row in json_lines(_required(folder / "queries.jsonl"), bad)
    ]
    yield from _collection(documents, [(n, t) for n, t in queries if n in judged], judged, task, triplets)


def _qrels(file: Path, documents: dict[str, str], corpus: Path) -> dict[str, dict[str, float]]:
    judged: dict[str, dict[str, float]] = defaultdict(dict)
    missing = []
    for number, line in enumerate(_required(file).read_text(encoding="utf-8").splitlines(), 1):
        cells = line.split("\t")
        if number == 1 and not cells[-1].strip().lstrip("-").replace(".", "").isdigit():
            continue
        if len(cells) not in (2, 3, 4):
            raise DataError("a judgement is query, document, grade", file=file, line=number, got=line)
        name, document = cells[0], cells[2] if len(cells) == 4 else cells[1]
        if document not in documents:
            missing.append(document)
            continue
        judged[name][document] = float(cells[-1]) if len(cells) > 2 else 1.0
    if missing:
        raise DataError(
            f"{len(missing)} judgements name documents that are not in {corpus.name}: {', '.join(missing[:5])}",
            file=file,
            hint="take qrels and corpus of one release",
        )
    return judged


def _collection(
    documents: dict[str, str],
    queries: Iterable[tuple[str, str]],
    judged: dict[str, dict[str, float]],
    task: str,
    triplets: bool,
) -> Iterator[EmbeddingExample]:
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


@READERS.register("smart")
def smart(
    path: str | Path,
    *,
    split: str | None = None,
    on_bad: Any = None,
    task: str = "Given a question, retrieve abstracts that are about it",
) -> Iterator[EmbeddingExample]:
    """The SMART layout of Cranfield and CISI: *.ALL with .I .T .W fields, *.qry, and qrels.

    A document is title and text. Grades below 0 (Cranfield's −1) count as not relevant.
    """
    folder = _required(path)
    found = {}
    for end in ("ALL", "qry"):
        files = sorted(f for f in folder.iterdir() if f.suffix.lower() == f".{end.lower()}")
        if not files:
            raise DataError(f"no .{end} file in the folder", file=folder)
        found[end] = _smart_fields(files[0])
    documents = {name: " ".join(f"{part['T']} {part['W']}".split()) for name, part in found["ALL"].items()}
    documents = {name: text for name, text in documents.items() if text}
    rows = sorted(folder.glob("*qrels*")) or sorted(folder.glob("*.REL"))
    if not rows:
        raise DataError("no qrels in the folder", file=folder)
    judged: dict[str, dict[str, float]] = defaultdict(dict)
    for line in rows[0].read_text(encoding="utf-8").splitlines():
        cells = line.split()
        if len(cells) >= 2 and cells[0].isdigit() and cells[1] in documents:
            grade = float(cells[-1]) if len(cells) == 3 else 1.0
            judged[cells[0]][cells[1]] = max(grade, 0.0)
    queries = [(name, " ".join(f"{part['T']} {part['W']}".split())) for name, part in found["qry"].items()]
    yield from _collection(documents, [(n, t) for n, t in queries if n in judged and t], judged, task, False)


def _smart_fields(file: Path) -> dict[str, dict[str, str]]:
    parts = re.split(r"(?m)^\.I\s+(\d+)\s*$", file.read_text(encoding="latin-1"))
    found = {}
    for name, body in zip(parts[1::2], parts[2::2]):
        fields: dict[str, str] = defaultdict(str)
        for mark, text in re.findall(r"(?ms)^\.([A-Z])\s*\n(.*?)(?=^\.[A-Z]\s*$|\Z)", body):
            fields[mark] += text
        found[name] = fields
    return found


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

    yield from everyday.pairs(task)


@READERS.register("embedded_labels")
def embedded_labels(
    path: str | Path | None = None, *, split: str | None = None, on_bad: Any = None, task: str = ""
) -> Iterator[EmbeddingExample]:
    """Everyday questions with their topic."""
    from apps.embeddings import everyday

    yield from everyday.topics(task)
