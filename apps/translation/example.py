"""What a translation example is, and its simple JSONL form with every field's type checked."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apps.translation.languages import direction, language
from core.errors import DataError, LanguageError


@dataclass(frozen=True)
class TranslationExample:
    """A source text and, where known, its translation.

    Args:
        src, tgt: texts; `tgt` is None for a text to translate and for monolingual text.
        src_lang, tgt_lang: BCP-47 codes; `tgt_lang` is "" for monolingual text.
        terms: (source term, target term) pairs that the translation must use.
        domain, id: free labels, kept in reports.
        rejected: a worse translation, where one is known.
    """

    src: str
    tgt: str | None = None
    src_lang: str = ""
    tgt_lang: str = ""
    terms: tuple[tuple[str, str], ...] = ()
    domain: str | None = None
    id: str | None = None
    rejected: str | None = None

    @property
    def monolingual(self) -> bool:
        return self.tgt is None and not self.tgt_lang

    def reversed(self) -> TranslationExample:
        """The same pair in the other direction."""
        if self.tgt is None:
            raise DataError("an example without a translation has no other direction", field="tgt")
        terms = tuple((target, source) for source, target in self.terms)
        return TranslationExample(self.tgt, self.src, self.tgt_lang, self.src_lang, terms, self.domain, self.id)


def to_jsonl(examples: Iterable[TranslationExample]) -> str:
    """The simple JSONL form, which the `jsonl` reader reads back to equal examples."""
    rows = ({k: v for k, v in asdict(example).items() if v not in (None, ())} for example in examples)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def example_from(
    row: Any, *, src: str = "", tgt: str = "", file: str | Path | None = None, line: int | None = None
) -> TranslationExample:
    """A `TranslationExample` from a dictionary in the simple JSONL form; every field's type is checked."""
    if not isinstance(row, dict):
        raise DataError("the row is not an object", file=file, line=line, got=row, expected='{"src": …, "tgt": …}')
    unknown = set(row) - set(TranslationExample.__dataclass_fields__)
    if unknown - {"meta", "prediction", "score"}:
        known = ", ".join(TranslationExample.__dataclass_fields__)
        raise DataError("unknown field", file=file, line=line, field=sorted(unknown)[0], hint=f"known: {known}")

    def bad(name: str, expected: str) -> DataError:
        return DataError("wrong value", file=file, line=line, field=name, got=row.get(name), expected=expected)

    if not isinstance(row.get("src"), str):
        raise bad("src", "a string")
    for name in ("tgt", "rejected"):
        if not isinstance(row.get(name), str | None):
            raise bad(name, "a string or absent")
    codes = [row.get("src_lang") or src, row.get("tgt_lang") or tgt]
    try:
        first, second = direction(*codes)
    except LanguageError as error:
        side = "src_lang" if "source" in error.what or codes[0] in error.what else "tgt_lang"
        raise DataError(error.what, file=file, line=line, field=side, hint=error.hint) from error
    terms = row.get("terms") or []
    well_formed = isinstance(terms, (list, tuple)) and all(
        isinstance(t, (list, tuple)) and len(t) == 2 and all(isinstance(x, str) and x for x in t) for t in terms
    )
    if not well_formed:
        raise bad("terms", '[["source term", "target term"], …]')
    label = row.get("id")
    return TranslationExample(
        row["src"],
        row.get("tgt"),
        first.code,
        second.code,
        tuple((a, b) for a, b in terms),
        row.get("domain"),
        None if label is None else str(label),
        row.get("rejected"),
    )


def pair_from(
    source: Any,
    target: Any,
    src: str,
    tgt: str,
    file: Path,
    number: int,
    domain: str | None = None,
    target_file: Path | None = None,
) -> TranslationExample:
    """A pair read from `file` (and `target_file`), line `number`; a side that is no text or blank is a `DataError`."""
    for name, text, place in (("src", source, file), ("tgt", target, target_file or file)):
        if not isinstance(text, str) or not text.strip():
            raise DataError("empty text", file=place, line=number, field=name, got=text, expected="a sentence")
    codes = language(src).code, language(tgt).code
    return TranslationExample(source.strip(), target.strip(), *codes, domain=domain, id=str(number))
