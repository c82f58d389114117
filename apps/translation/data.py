"""What a translation example is, and the readers for the layouts in which parallel and monolingual text comes.

A reader is a generator of `TranslationExample`: `reader(path, *, split=None, on_bad=None, ...)`. It reads line by
line, names file, line and field of whatever is wrong, and hands a malformed row to `on_bad` (anything with
`handle(DataError)`; None raises). Text that was tokenised or lowercased is refused: a model trained on it writes that
way, and scores on it compare with nothing. Nothing here knows of tokenizers or models.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from core.config.registry import Registry
from core.errors import DataError, LanguageError

from apps.translation.languages import direction, language

Reader = Callable[..., Iterator["TranslationExample"]]
READERS: Registry[Reader] = Registry("reader")
STAND_INS = {"mono": "embedded_mono"}


@dataclass(frozen=True)
class TranslationExample:
    """A source text and, where known, its translation.

    Args:
        src, tgt: texts; `tgt` is None for a text to translate and for monolingual text.
        src_lang, tgt_lang: BCP-47 codes; `tgt_lang` is "" for monolingual text.
        terms: (source term, target term) pairs that the translation must use.
        domain, id: free labels, kept in reports.
    """

    src: str
    tgt: str | None = None
    src_lang: str = ""
    tgt_lang: str = ""
    terms: tuple[tuple[str, str], ...] = ()
    domain: str | None = None
    id: str | None = None

    @property
    def monolingual(self) -> bool:
        return self.tgt is None and not self.tgt_lang

    def reversed(self) -> TranslationExample:
        """The same pair in the other direction."""
        if self.tgt is None:
            raise DataError("an example without a translation has no other direction", field="tgt")
        terms = tuple((target, source) for source, target in self.terms)
        return TranslationExample(self.tgt, self.src, self.tgt_lang, self.src_lang, terms, self.domain, self.id)


def load_data(
    path: str | Path | None = None,
    reader: str = "jsonl",
    *,
    split: str | None = None,
    limit: int | None = None,
    on_bad: Any = None,
    **arguments: Any,
) -> list[TranslationExample]:
    """Read examples into a list: `load_data("data/train", "moses", src="de", tgt="en")`.

    Raises:
        ConfigError: unknown reader. DataError: unusable file or row.
    """
    rows = READERS.get(reader)(path, split=split, on_bad=on_bad, **arguments)
    return list(islice(rows, limit))


def to_jsonl(examples: Iterable[TranslationExample]) -> str:
    """The simple JSONL form, which the `jsonl` reader reads back to equal examples."""
    rows = ({k: v for k, v in asdict(example).items() if v not in (None, ())} for example in examples)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


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
    _check_direction(src, tgt)
    base = Path(path) / (split or "train") if Path(path).is_dir() else Path(path)
    if split and not Path(path).is_dir():
        base = base.with_name(f"{base.name}.{split}") if base.name != split else base
    pair = (f".{src}-{tgt}", f".{tgt}-{src}", "")
    stems = [base.with_name(base.name + middle) for middle in ("", *pair[:2])]
    for stem in stems:
        files = [_existing(stem.with_name(f"{stem.name}.{lang}")) for lang in (src, tgt)]
        if all(files):
            yield from _parallel(files[0], files[1], src, tgt, on_bad, allow_tokenised, domain)
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
    _check_direction(src, tgt)
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
    _check_direction(src, tgt)
    file, need = _file(path), max(columns) + 1

    def rows() -> Iterator[TranslationExample]:
        for number, line in _lines(file, on_bad):
            if header and number == 1:
                continue
            cells = line.split("\t")
            try:
                if len(cells) < need:
                    raise DataError(
                        "too few columns", file=file, line=number, got=len(cells), expected=f"at least {need}"
                    )
                yield _pair(cells[columns[0]], cells[columns[1]], src, tgt, file, number)
            except DataError as error:
                _reject(on_bad, error)

    yield from _detokenised(rows(), file, allow_tokenised)


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
    _check_direction(src, tgt)
    file = _alma_file(Path(path), split or "train", src, tgt)

    def rows() -> Iterator[TranslationExample]:
        for number, row in _json_rows(file, on_bad):
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
                yield _pair(texts[src], texts[tgt], src, tgt, file, number)
            except DataError as error:
                _reject(on_bad, error)

    yield from _detokenised(rows(), file, allow_tokenised)


def _alma_file(path: Path, split: str, src: str, tgt: str) -> Path:
    if not path.is_dir():
        return _file(path)
    names = [f"{split}.{src}-{tgt}.json", f"{split}.{tgt}-{src}.json"]
    for folder in (path, path / f"{src}{tgt}", path / f"{tgt}{src}"):
        for name in names:
            if found := _existing(folder / name):
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
    file = _file(Path(path) / f"{split or 'train'}.jsonl" if Path(path).is_dir() else path)

    def rows() -> Iterator[TranslationExample]:
        for number, row in _json_rows(file, on_bad):
            try:
                yield example_from(row, src=src, tgt=tgt, file=file, line=number)
            except DataError as error:
                _reject(on_bad, error)

    yield from _detokenised(rows(), file, allow_tokenised)


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
    file = _file(path)

    def rows() -> Iterator[TranslationExample]:
        structured = file.name.removesuffix(".gz").endswith((".jsonl", ".json"))
        for number, row in _json_rows(file, on_bad) if structured else _lines(file, on_bad):
            try:
                text = row.get(field) if isinstance(row, dict) else row
                if not isinstance(text, str):
                    raise DataError(
                        "the row has no text", file=file, line=number, field=field, got=row, expected="a string"
                    )
                if text.strip():
                    yield TranslationExample(text.strip(), src_lang=code)
            except DataError as error:
                _reject(on_bad, error)

    yield from _detokenised(rows(), file, allow_tokenised)


@READERS.register("embedded")
def embedded(
    path: Any = None,
    *,
    split: str | None = None,
    on_bad: Any = None,
    src: str = "de",
    tgt: str = "en",
    limit: int | None = None,
    seed: int = 0,
) -> Iterator[TranslationExample]:
    """The German-English corpus that ships with the project; other languages of the request give way to it."""
    from core.data.embedded import pairs

    flip = language(src).code == "en"
    for number, (german, english) in enumerate(pairs(split or "train", limit=limit, seed=seed)):
        example = TranslationExample(german, english, "de", "en", domain="embedded", id=str(number))
        yield example.reversed() if flip else example


@READERS.register("embedded_mono")
def embedded_mono(
    path: Any = None,
    *,
    split: str | None = None,
    on_bad: Any = None,
    lang: str = "en",
    limit: int | None = None,
) -> Iterator[TranslationExample]:
    """Monolingual sentences that ship with the project: German for "de", English for any other language."""
    from core.data.embedded import monolingual

    code = "de" if language(lang).code == "de" else "en"
    for text in monolingual(code, limit=limit):
        yield TranslationExample(text, src_lang=code)


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
    if not isinstance(row.get("tgt"), str | None):
        raise bad("tgt", "a string or absent")
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
    )


def _parallel(
    first: Path, second: Path, src: str, tgt: str, on_bad: Any, allowed: bool, domain: str | None
) -> Iterator[TranslationExample]:
    counts = [_count_lines(file) for file in (first, second)]
    if counts[0] != counts[1]:
        raise DataError(
            f"parallel files differ in length: {first.name} has {counts[0]} lines, {second.name} has {counts[1]}",
            file=first.parent,
            hint="line n of one must be the translation of line n of the other",
        )

    def rows() -> Iterator[TranslationExample]:
        for (number, source), (_, target) in zip(_lines(first, None), _lines(second, None)):
            try:
                yield _pair(source, target, src, tgt, first, number, domain, second)
            except DataError as error:
                _reject(on_bad, error)

    yield from _detokenised(rows(), first, allowed)


def _pair(
    source: Any,
    target: Any,
    src: str,
    tgt: str,
    file: Path,
    number: int,
    domain: str | None = None,
    target_file: Path | None = None,
) -> TranslationExample:
    for name, text, place in (("src", source, file), ("tgt", target, target_file or file)):
        if not isinstance(text, str) or not text.strip():
            raise DataError("empty text", file=place, line=number, field=name, got=text, expected="a sentence")
    codes = language(src).code, language(tgt).code
    return TranslationExample(source.strip(), target.strip(), *codes, domain=domain, id=str(number))


def _check_direction(src: str, tgt: str) -> None:
    direction(src, tgt)


def _reject(on_bad: Any, error: DataError) -> None:
    if on_bad is None or on_bad == "raise":
        raise error
    on_bad.handle(error)


def _existing(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _file(path: str | Path | None) -> Path:
    if path is None:
        raise DataError("the reader needs a path", hint="set path: in the source")
    found = _existing(Path(path))
    if found is None:
        raise DataError("file not found", file=path)
    return found


def _open(file: Path) -> Any:
    return gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb")


def _count_lines(file: Path) -> int:
    count, last = 0, b"\n"
    with _open(file) as handle:
        while block := handle.read(1 << 20):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")


def _lines(file: Path, on_bad: Any) -> Iterator[tuple[int, str]]:
    """Numbered lines, cut only at LF: Unicode's other line separators occur inside sentences."""
    try:
        with _open(file) as handle:
            for number, raw in enumerate(handle, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    _reject(on_bad, DataError(f"not UTF-8: {error.reason}", file=file, line=number, got=raw[:40]))
                    continue
                yield number, text
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read: {error}", file=file) from error


def _json_rows(file: Path, on_bad: Any) -> Iterator[tuple[int, Any]]:
    """Numbered rows of a JSON list (numbered from 1) or of JSON lines; blank lines are passed over."""
    with _open(file) as handle:
        as_list = handle.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")
    if as_list:
        with _open(file) as handle:
            try:
                rows = json.loads(handle.read().decode("utf-8-sig"))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DataError(f"not valid JSON: {error}", file=file, line=getattr(error, "lineno", None)) from error
        yield from enumerate(rows, 1)
        return
    for number, line in _lines(file, on_bad):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                _reject(on_bad, DataError(f"not valid JSON: {error.msg}", file=file, line=number, got=line))
                continue
            yield number, row


_TOKENISED = re.compile(r"\S [.,](\s|$)|&(apos|quot|#\d+);|@-@|@@(\s|$)|\S n't\b")
_SAMPLE = 200


def _detokenised(rows: Iterator[TranslationExample], file: Path, allowed: bool) -> Iterator[TranslationExample]:
    """Pass rows on after a look at the first 200; refuse text that is tokenised or lowercased."""
    if allowed:
        yield from rows
        return
    head = list(islice(rows, _SAMPLE))
    for side in ("src", "tgt"):
        texts = [text for row in head if (text := getattr(row, side))]
        marked = [text for text in texts if _TOKENISED.search(text)]
        cased = [text for text in texts if text.lower() != text.upper()]
        lowered = [text for text in cased if text == text.lower()]
        for found, out_of, share, word in ((marked, texts, 0.25, "tokenised"), (lowered, cased, 0.95, "lowercased")):
            if len(out_of) >= 8 and len(found) > share * len(out_of):
                raise DataError(
                    f"the {'source' if side == 'src' else 'target'} text looks {word}: "
                    f"{len(found)} of the first {len(out_of)} rows",
                    file=file,
                    field=side,
                    got=found[0],
                    hint="use the detokenised, cased text, or set allow_tokenised: true",
                )
    yield from head
    yield from rows
