"""Documents for language modelling: text files, JSONL, and the text that ships."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.data.readers import Readers
from core.data.rows import BadRows, jsonl
from core.errors import DataError


@dataclass(frozen=True)
class TextExample:
    """A document. `lang` is the language it counts as in a mixture, "" where that is not known."""

    text: str
    id: str | None = None
    lang: str = ""


READERS: Readers[TextExample] = Readers("text")
load_data = READERS.load


@READERS.register("text")
def text(
    path: str,
    *,
    split: str | None = None,
    on_bad: BadRows,
    unit: Literal["file", "line", "paragraph"] = "file",
    lang: str = "",
) -> Iterator[TextExample]:
    """A text file or a folder of .txt files; a document is a file, line or paragraph. `split` names a sub-folder."""
    place = Path(path) / split if split else Path(path)
    if not place.exists():
        raise DataError("file not found", file=place)
    files = sorted(place.rglob("*.txt")) if place.is_dir() else [place]
    if not files:
        raise DataError("the folder has no .txt file", file=place)
    for file in files:
        try:
            content = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            on_bad.handle(DataError(f"cannot be read as UTF-8: {error}", file=file))
            continue
        parts = {"file": [content], "line": content.splitlines(), "paragraph": content.split("\n\n")}[unit]
        for number, part in enumerate(parts, 1):
            if part.strip():
                yield TextExample(part.strip(), f"{file.name}:{number}", lang)


@READERS.register("jsonl")
def jsonl_text(
    path: str,
    *,
    split: str | None = None,
    on_bad: BadRows,
    field: str = "text",
    lang: str = "",
    lang_field: str = "lang",
) -> Iterator[TextExample]:
    """JSONL with a text field; `split` is put before the suffix (data.train.jsonl).

    A row's language is its `lang_field`, where it has one, else `lang`.
    """
    place = Path(path).with_suffix(f".{split}.jsonl") if split else Path(path)
    for number, row in jsonl(place, on_bad):
        value = row.get(field)
        if not isinstance(value, str) or not value.strip():
            on_bad.handle(DataError("no text", file=place, line=number, field=field, got=value, expected="text"))
            continue
        yield TextExample(value, f"{place.name}:{number}", str(row.get(lang_field) or lang))


@READERS.register("embedded")
def embedded(
    path: str | None = None,
    *,
    split: str | None = None,
    on_bad: BadRows,
    lang: Literal["de", "en", "both"] = "both",
    noise: bool = False,
) -> Iterator[TextExample]:
    """The text that ships, German and English apart; split train or dev.

    With `noise`, each sentence follows a noisy form of itself.
    """
    from core.data.embedded import denoising, held_out_text, monolingual

    if split in (None, "train"):
        text_of = denoising if noise else monolingual
        codes = ("de", "en") if lang == "both" else (lang,)
        for row in zip(*(text_of(code) for code in codes)):
            yield from (TextExample(sentence, lang=code) for sentence, code in zip(row, codes))
    elif split == "dev":
        yield from (TextExample(s, lang="de" if i % 2 else "en") for i, s in enumerate(held_out_text()))
    else:
        raise DataError("unknown split of the embedded text", got=split, expected="train, dev")


import apps.lm.triples  # noqa: E402, F401  (registers its reader)
