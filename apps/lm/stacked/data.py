"""Texts whose vectors are asked for: English ones to learn on, and texts of other languages beside their English."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.data.readers import Readers
from core.data.rows import BadRows, jsonl
from core.errors import DataError


@dataclass(frozen=True)
class StackExample:
    """A text.

    Args:
        english: what it says in English, "" where that is not known; of an English text, the text itself.
        label: the name of its class, "" without a task.
    """

    text: str
    id: str | None = None
    lang: str = "en"
    english: str = ""
    label: str = ""


READERS: Readers = Readers()


@READERS.register("text")
def text(path: str, *, split: str | None = None, on_bad: BadRows, lang: str = "en") -> Iterator[StackExample]:
    """A text file or a folder of .txt files, one text a line; `split` names a sub-folder."""
    place = Path(path) / split if split else Path(path)
    files = sorted(place.rglob("*.txt")) if place.is_dir() else [place]
    if not files:
        raise DataError("the folder has no .txt file", file=place)
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                yield StackExample(line.strip(), f"{file.name}:{number}", lang, line.strip() if lang == "en" else "")


@READERS.register("parallel")
def parallel(
    path: str, *, split: str | None = None, on_bad: BadRows, lang: str, english: str = "en"
) -> Iterator[StackExample]:
    """Two files with a sentence a line, PATH.LANG and PATH.ENGLISH, as Multi30k and NTREX have them."""
    stem = f"{path}/{split}" if split else path
    texts, wanted = _lines(Path(f"{stem}.{lang}")), _lines(Path(f"{stem}.{english}"))
    if len(texts) != len(wanted):
        raise DataError(
            f"{len(texts)} lines beside {len(wanted)} in {stem}.{english}",
            file=f"{stem}.{lang}",
            hint="align the files",
        )
    for number, (line, other) in enumerate(zip(texts, wanted), 1):
        if not line.strip() or not other.strip():
            on_bad.handle(DataError("a line is empty", file=f"{stem}.{lang}", line=number))
            continue
        yield StackExample(line.strip(), f"{Path(stem).name}:{number}", lang, other.strip())


@READERS.register("jsonl")
def jsonl_texts(path: str, *, split: str | None = None, on_bad: BadRows) -> Iterator[StackExample]:
    """JSONL with text and, where there are any, lang, english and label; `split` is put before the suffix."""
    place = Path(path).with_suffix(f".{split}.jsonl") if split else Path(path)
    for number, row in jsonl(place, on_bad):
        values = {name: row.get(name) for name in ("text", "lang", "english", "label") if row.get(name) is not None}
        bad = next((n for n in ("text", "lang", "english", "label") if not isinstance(values.get(n, ""), str)), None)
        if bad or not values.get("text", "").strip():
            on_bad.handle(
                DataError("no text", file=place, line=number, field=bad or "text", got=row.get(bad or "text"))
            )
            continue
        yield _whole(StackExample(id=f"{place.name}:{number}", **values))


@READERS.register("nusax")
def nusax(path: str, *, split: str | None = None, on_bad: BadRows, lang: str = "english") -> Iterator[StackExample]:
    """The sentiment set of NusaX (Winata et al. 2023): PATH/LANG/SPLIT.csv, with the English text of the same id."""
    if not (Path(path) / lang).is_dir():
        langs = sorted(p.name for p in Path(path).glob("*") if p.is_dir())
        raise DataError(f"no language '{lang}' here", file=path, hint=f"there are {', '.join(langs) or 'none'}")
    own, english = (_table(Path(path) / name / f"{split or 'train'}.csv") for name in (lang, "english"))
    known = {row["id"]: row["text"] for row in english}
    for number, row in enumerate(own, 2):
        if not (row.get("text") or "").strip() or not row.get("label"):
            on_bad.handle(DataError("no text or no label", file=Path(path) / lang, line=number))
            continue
        code = "en" if lang == "english" else lang
        yield StackExample(row["text"].strip(), row["id"], code, known.get(row["id"], ""), row["label"])


@READERS.register("embedded")
def embedded(path: str | None = None, *, split: str | None = None, on_bad: BadRows) -> Iterator[StackExample]:
    """The text that ships: English sentences to learn on (train), and pairs of German and English to be scored (dev,
    test). A label says what the sentence is about; one that is about several things has none.
    """
    from core.data.embedded import monolingual, pairs

    if split in (None, "train"):
        for sentence in monolingual("en"):
            yield StackExample(sentence, lang="en", english=sentence, label=topic(sentence))
        return
    if split not in ("dev", "test"):
        raise DataError("unknown split of the embedded text", got=split, expected="train, dev, test")
    for german, english in pairs(split):
        label = topic(english)
        yield StackExample(german, lang="de", english=english, label=label)
        yield StackExample(english, lang="en", english=english, label=label)


def topic(sentence: str) -> str:
    """What an English sentence of the embedded text is about: an animal, food, a place, a thing, or persons alone."""
    from core.data.embedded.lexicon import NOUNS

    words = {word.strip(".,?!").lower() for word in sentence.split()}
    kinds = {noun.kind for noun in NOUNS if words & {noun.en, noun.en_plural}}
    others = kinds - {"person"}
    return "" if len(others) > 1 else next(iter(others or kinds), "")


def _whole(example: StackExample) -> StackExample:
    from dataclasses import replace

    return replace(example, english=example.text) if example.lang == "en" and not example.english else example


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError("file not found", file=file) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as UTF-8: {error}", file=file) from error


def _table(file: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(_lines(file)))
    if rows and not {"id", "text", "label"} <= rows[0].keys():
        raise DataError("the columns are not id, text, label", file=file, got=", ".join(rows[0]))
    return rows
