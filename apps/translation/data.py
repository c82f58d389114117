"""The readers: one for each layout in which parallel and monolingual text comes, all giving `TranslationExample`s.

A reader is a generator of `TranslationExample`: `reader(path, *, split=None, on_bad=None, ...)`. It reads line by
line, names file, line and field of whatever is wrong, and hands a malformed row to `on_bad` (anything with
`handle(DataError)`; None raises). Text that was tokenised or lowercased is refused: a model trained on it writes that
way, and scores on it compare with nothing. Nothing here knows of tokenizers or models.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apps.translation.example import TranslationExample, example_from, pair_from, to_jsonl
from apps.translation.languages import direction, language
from apps.translation.preferences import embedded_triplets, triplets
from apps.translation.reading import count_lines, detokenised, existing, json_rows, lines, required
from core.data.readers import Readers
from core.data.reading import reject
from core.errors import DataError

__all__ = ["READERS", "STAND_INS", "TranslationExample", "example_from", "load_data", "to_jsonl"]

READERS: Readers[TranslationExample] = Readers()
load_data = READERS.load
READERS.register("triplets")(triplets)
READERS.register("embedded_triplets")(embedded_triplets)
STAND_INS = {"mono": "embedded_mono", "triplets": "embedded_triplets"}


@READERS.register("moses")
def moses(
    path: str | Path,
    *,
    split: str | None = None,
    on_bad: Any = None,
    src: str,
    tgt: str,
    domain: str | None = None,
    allow_tokenised: bool = False,
) -> Iterator[TranslationExample]:
    """Two text files, parallel by line: `prefix.de` and `prefix.en`, plain or .gz, or a folder and a split.

    `train.de-en.de` beside `train.de-en.en` is found as well.
    """
    direction(src, tgt)
    base = Path(path) / (split or "train") if Path(path).is_dir() else Path(path)
    if split and not Path(path).is_dir():
        base = base.with_name(f"{base.name}.{split}") if base.name != split else base
    pair = (f".{src}-{tgt}", f".{tgt}-{src}", "")
    stems = [base.with_name(base.name + middle) for middle in ("", *pair[:2])]
    for stem in stems:
        first, second = (existing(stem.with_name(f"{stem.name}.{lang}")) for lang in (src, tgt))
        if first and second:
            yield from _parallel(first, second, src, tgt, on_bad, allow_tokenised, domain)
            return
    near = sorted(p.name for p in base.parent.glob("*"))[:8] if base.parent.is_dir() else []
    raise DataError(
        f"no parallel files {base.name}.{src} and {base.name}.{tgt} (or .gz)",
        file=base.parent,
        hint=f"the folder holds: {', '.join(near) or 'nothing'}" if base.parent.is_dir() else "no such folder",
    )


@READERS.register("ntrex")
def ntrex(
    path: str | Path,
    *,
    split: str | None = None,
    on_bad: Any = None,
    src: str,
    tgt: str,
    allow_tokenised: bool = False,
) -> Iterator[TranslationExample]:
    """NTREX-128 (Federmann et al. 2022): a folder with `newstest2019-{src,ref}.{three-letter code}.txt`."""
    direction(src, tgt)
    folder = Path(path)
    files = [_ntrex_file(folder, code) for code in (src, tgt)]
    yield from _parallel(files[0], files[1], src, tgt, on_bad, allow_tokenised, "news")


def _ntrex_file(folder: Path, code: str) -> Path:
    lang = language(code)
    three = {lang.nllb.partition("_")[0], {"sw": "swa", "ne": "nep", "lv": "lav", "ms": "msa"}.get(lang.code, "")}
    for file in sorted(folder.glob("newstest2019-*.txt*")):
        if file.name.removeprefix("newstest2019-").split(".")[1].partition("-")[0] in three:
            return file
    have = sorted({f.name.split(".")[1] for f in folder.glob("newstest2019-*.txt*")})
    raise DataError(f"no NTREX file for {lang.name}", file=folder, hint=f"the folder has: {', '.join(have) or 'none'}")


@READERS.register("tsv")
def tsv(
    path: str | Path,
    *,
    split: str | None = None,
    on_bad: Any = None,
    src: str,
    tgt: str,
    columns: tuple[int, int] | list[int] = (0, 1),
    header: bool = False,
    allow_tokenised: bool = False,
) -> Iterator[TranslationExample]:
    """Tab-separated text; `columns` are the places of source and target, from 0."""
    direction(src, tgt)
    file, need = required(path), max(columns) + 1

    def rows() -> Iterator[TranslationExample]:
        for number, line in lines(file, on_bad):
            if header and number == 1:
                continue
            cells = line.split("\t")
            try:
                if len(cells) < need:
                    raise DataError(
                        "too few columns", file=file, line=number, got=len(cells), expected=f"at least {need}"
                    )
                yield pair_from(cells[columns[0]], cells[columns[1]], src, tgt, file, number)
            except DataError as error:
                reject(on_bad, error)

    yield from detokenised(rows(), file, allow_tokenised)


@READERS.register("alma")
def alma(
    path: str | Path,
    *,
    split: str | None = None,
    on_bad: Any = None,
    src: str,
    tgt: str,
    allow_tokenised: bool = False,
) -> Iterator[TranslationExample]:
    """ALMA's JSON (Xu et al. 2023): rows `{"translation": {"de": …, "en": …}}` as one list or one a line.

    A file serves both directions. A folder is searched for `{split}.de-en.json` or `{split}.en-de.json`, the wanted
    direction first, also inside `deen/` or `ende/`.
    """
    direction(src, tgt)
    file = _alma_file(Path(path), split or "train", src, tgt)

    def rows() -> Iterator[TranslationExample]:
        for number, row in json_rows(file, on_bad):
            try:
                texts = row.get("translation") if isinstance(row, dict) else None
                if not isinstance(texts, dict):
                    raise DataError(
                        "not an ALMA row",
                        file=file,
                        line=number,
                        field="translation",
                        got=row,
                        expected=f'{{"translation": {{"{src}": …, "{tgt}": …}}}}',
                    )
                for code in (src, tgt):
                    if code not in texts:
                        raise DataError(
                            f"the row has no '{code}' text",
                            file=file,
                            line=number,
                            field=f"translation.{code}",
                            got=sorted(texts),
                            expected=f"{src} and {tgt}",
                        )
                yield pair_from(texts[src], texts[tgt], src, tgt, file, number)
            except DataError as error:
                reject(on_bad, error)

    yield from detokenised(rows(), file, allow_tokenised)


def _alma_file(path: Path, split: str, src: str, tgt: str) -> Path:
    if not path.is_dir():
        return required(path)
    names = [f"{split}.{src}-{tgt}.json", f"{split}.{tgt}-{src}.json"]
    for folder in (path, path / f"{src}{tgt}", path / f"{tgt}{src}"):
        for name in names:
            if found := existing(folder / name):
                return found
    raise DataError(f"no {names[0]} or {names[1]}", file=path, hint="give the file, or the folder that holds it")


@READERS.register("jsonl")
def jsonl(
    path: str | Path,
    *,
    split: str | None = None,
    on_bad: Any = None,
    src: str = "",
    tgt: str = "",
    allow_tokenised: bool = False,
) -> Iterator[TranslationExample]:
    """One object a line: `{"src", "tgt", "src_lang", "tgt_lang", "domain"?, "terms"?: [["Welle", "shaft"]], "id"?}`.

    `src` and `tgt` are the languages of rows that do not say theirs. A folder needs `split`: `{split}.jsonl`.
    """
    file = required(Path(path) / f"{split or 'train'}.jsonl" if Path(path).is_dir() else path)

    def rows() -> Iterator[TranslationExample]:
        for number, row in json_rows(file, on_bad):
            try:
                yield example_from(row, src=src, tgt=tgt, file=file, line=number)
            except DataError as error:
                reject(on_bad, error)

    yield from detokenised(rows(), file, allow_tokenised)


@READERS.register("mono")
def mono(
    path: str | Path,
    *,
    split: str | None = None,
    on_bad: Any = None,
    lang: str,
    field: str = "text",
    allow_tokenised: bool = False,
) -> Iterator[TranslationExample]:
    """Monolingual documents: one a line of a text file, or `field` of each row of a .jsonl or .json file."""
    code = language(lang).code
    file = required(path)

    def rows() -> Iterator[TranslationExample]:
        structured = file.name.removesuffix(".gz").endswith((".jsonl", ".json"))
        for number, row in json_rows(file, on_bad) if structured else lines(file, on_bad):
            try:
                text = row.get(field) if isinstance(row, dict) else row
                if not isinstance(text, str):
                    raise DataError(
                        "the row has no text", file=file, line=number, field=field, got=row, expected="a string"
                    )
                if text.strip():
                    yield TranslationExample(text.strip(), src_lang=code)
            except DataError as error:
                reject(on_bad, error)

    yield from detokenised(rows(), file, allow_tokenised)


@READERS.register("embedded")
def embedded(
    path: Any = None,
    *,
    split: str | None = None,
    on_bad: Any = None,
    src: str = "de",
    tgt: str = "en",
    seed: int = 0,
    max_words: int | None = None,
) -> Iterator[TranslationExample]:
    """The German-English corpus that ships with the project; `max_words` keeps German sentences up to that length."""
    from core.data.embedded import pairs

    flip = language(src).code == "en"
    for number, (german, english) in enumerate(pairs(split or "train", seed=seed)):
        if max_words is not None and len(german.split()) > max_words:
            continue
        example = TranslationExample(german, english, "de", "en", domain="embedded", id=str(number))
        yield example.reversed() if flip else example


@READERS.register("embedded_mono")
def embedded_mono(
    path: Any = None,
    *,
    split: str | None = None,
    on_bad: Any = None,
    lang: str = "en",
) -> Iterator[TranslationExample]:
    """Monolingual sentences that ship with the project: German for "de", English for any other language."""
    from core.data.embedded import monolingual

    code = "de" if language(lang).code == "de" else "en"
    for text in monolingual(code):
        yield TranslationExample(text, src_lang=code)


def _parallel(
    first: Path, second: Path, src: str, tgt: str, on_bad: Any, allowed: bool, domain: str | None
) -> Iterator[TranslationExample]:
    counts = [count_lines(file) for file in (first, second)]
    if counts[0] != counts[1]:
        raise DataError(
            f"parallel files differ in length: {first.name} has {counts[0]} lines, {second.name} has {counts[1]}",
            file=first.parent,
            hint="line n of one must be the translation of line n of the other",
        )

    def rows() -> Iterator[TranslationExample]:
        for (number, source), (_, target) in zip(lines(first, None), lines(second, None)):
            try:
                yield pair_from(source, target, src, tgt, first, number, domain, second)
            except DataError as error:
                reject(on_bad, error)

    yield from detokenised(rows(), first, allowed)
