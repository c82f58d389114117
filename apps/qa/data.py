"""What a question is, and the readers: BioASQ's JSON, PubMedQA, a simple JSONL, and questions that ship.

A question has a type, as in BioASQ (Tsatsaronis et al. 2015): yesno, factoid (one name), list (several), summary.
Answers are groups of synonyms. A malformed row names file, line and field and goes to `on_bad` (None raises).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.files import read_json
from core.data.readers import Readers
from core.data.rows import BadRows
from core.data.rows import jsonl as json_lines
from core.errors import DataError

TYPES = ("yesno", "factoid", "list", "summary")
YESNO = ("yes", "no")
READERS: Readers[QaExample] = Readers()
load_data = READERS.load


@dataclass(frozen=True)
class QaExample:
    """A question with passages and answers.

    Args:
        type: yesno, factoid, list or summary. contexts: passages to answer from.
        answers: for yesno one option; for factoid and list each item with its synonyms; for summary the ideal answer.
        options: the words that a yesno answer is one of.
    """

    question: str
    type: str = "yesno"
    contexts: tuple[str, ...] = ()
    answers: tuple[tuple[str, ...], ...] = ()
    options: tuple[str, ...] = YESNO
    id: str | None = None

    @property
    def answer(self) -> str:
        """The reference in words: items by their first name."""
        return "; ".join(group[0] for group in self.answers if group)


def example_from(row: Any, *, file: Any = None, line: int | None = None) -> QaExample:
    """A `QaExample` from {"question", "type"?, "contexts"?, "answers"?, "options"?, "id"?}.

    Raises:
        DataError: no question, an unknown type or field, a yesno answer that is no option.
    """
    if not isinstance(row, dict):
        raise DataError("the row is not an object", file=file, line=line, got=row, expected='{"question": …}')

    def bad(name: str, expected: str) -> DataError:
        return DataError("wrong value", file=file, line=line, field=name, got=row.get(name), expected=expected)

    for name in set(row) - {*QaExample.__dataclass_fields__, "meta", "prediction"}:
        raise DataError("unknown field", file=file, line=line, field=name, expected="question, contexts, answers, …")
    if not isinstance(row.get("question"), str) or not row["question"].strip():
        raise bad("question", "a text that is not empty")
    if not all(map(whole, texts_in([row["question"], row.get("contexts")]))):
        raise DataError("half a character, which no file can hold", file=file, line=line, got=row["question"])
    kind = row.get("type", "yesno")
    if kind not in TYPES:
        raise bad("type", ", ".join(TYPES))
    contexts = row.get("contexts") or []
    if not isinstance(contexts, (list, tuple)) or not all(isinstance(text, str) for text in contexts):
        raise bad("contexts", "a list of texts")
    answers = row.get("answers") or []
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, (list, tuple)) or not all(isinstance(item, (str, list, tuple)) for item in answers):
        raise bad("answers", "texts, or lists of synonyms")
    groups = tuple((item,) if isinstance(item, str) else tuple(item) for item in answers)
    if not all(group and all(isinstance(name, str) and name.strip() for name in group) for group in groups):
        raise bad("answers", "texts, or lists of synonyms")
    options = row.get("options") or YESNO
    if not isinstance(options, (list, tuple)) or not all(isinstance(word, str) and word.strip() for word in options):
        raise bad("options", "a list of words")
    options = tuple(options)
    if kind == "yesno" and groups and groups[0][0] not in options:
        raise bad("answers", f"one of {', '.join(options)}")
    name = row.get("id")
    return QaExample(row["question"], kind, tuple(contexts), groups, options, None if name is None else str(name))


def texts_in(value: Any) -> Iterator[str]:
    """The texts in nested lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_in(item)


def whole(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which JSON can spell and no tokenizer reads."""
    try:
        return text.isascii() or text.encode() is not None
    except UnicodeEncodeError:
        return False


def _required(path: Any) -> Path:
    if path is None or not Path(path).is_file():
        raise DataError("file not found", file=path, hint="set path: in the source")
    return Path(path)


@READERS.register("jsonl")
def jsonl(path: str | Path, *, split: str | None = None, on_bad: Any = None) -> Iterator[QaExample]:
    """The simple form, one question a line."""
    bad = BadRows() if on_bad in (None, "raise") else on_bad
    for number, row in json_lines(_required(path), bad):
        try:
            example = example_from(row, file=path, line=number)
        except DataError as error:
            bad.handle(error)
            continue
        yield example


@READERS.register("bioasq")
def bioasq(path: str | Path, *, split: str | None = None, on_bad: Any = None) -> Iterator[QaExample]:
    """BioASQ's training JSON: questions with snippets and exact or ideal answers."""
    bad = BadRows() if on_bad in (None, "raise") else on_bad
    try:
        questions = read_json(_required(path))["questions"]
    except (KeyError, TypeError):
        questions = None
    if not isinstance(questions, list):
        raise DataError("not BioASQ's JSON", file=path, field="questions", expected='{"questions": […]}')
    for number, row in enumerate(questions, 1):
        try:
            exact, ideal = row.get("exact_answer"), row.get("ideal_answer") or []
            kind = row["type"]
            answers: Any = ideal if kind == "summary" else exact
            answers = [answers] if isinstance(answers, str) else list(answers or [])
            if kind == "factoid" and answers and isinstance(answers[0], str):
                answers = [answers]
            if kind == "yesno":
                answers = [str(answers[0]).lower()] if answers else []
            contexts = [snippet["text"] for snippet in row.get("snippets") or []]
            body = {
                "question": row["body"],
                "type": kind,
                "contexts": contexts,
                "answers": answers,
                "id": row.get("id"),
            }
            example = example_from(body, file=path, line=number)
        except (KeyError, TypeError, AttributeError):
            expected = '{"body", "type", "snippets": [{"text"}], "exact_answer", "ideal_answer"}'
            got = f"{row!r:.200}"
            bad.handle(DataError("no question of BioASQ", file=path, line=number, got=got, expected=expected))
            continue
        except DataError as error:
            bad.handle(error)
            continue
        yield example


_PUBMED = re.compile(r"^Context: (.*)\nQuestion: (.*)\nA\. yes\nB\. no\nC\. maybe\nAnswer: *$", re.S)


@READERS.register("pubmedqa")
def pubmedqa(path: str | Path, *, split: str | None = None, on_bad: Any = None, fold: int = 0) -> Iterator[QaExample]:
    """PubMedQA (Jin et al. 2019) as {"context", "continuation"}: yes, no or maybe.

    Args:
        fold: every fifth question from this number on is the split "test", the next ones "dev", the others "train".
    """
    bad = BadRows() if on_bad in (None, "raise") else on_bad
    if not isinstance(fold, int):
        raise DataError("no such fold", field="fold", got=fold, expected="0 to 4")
    for number, row in json_lines(_required(path), bad):
        found = _PUBMED.match(str(row.get("context", "")))
        answer = str(row.get("continuation", "")).strip()
        if found is None or answer not in ("yes", "no", "maybe"):
            bad.handle(DataError("not a PubMedQA row", file=path, line=number, got=answer, expected="yes, no or maybe"))
            continue
        part = {fold % 5: "test", (fold + 1) % 5: "dev"}.get(number % 5, "train")
        if split in (None, part):
            contexts = tuple(text.strip() for text in found[1].split("\n") if text.strip())
            options = (*YESNO, "maybe")
            yield QaExample(found[2].strip(), "yesno", contexts, ((answer,),), options, str(number))


_FACTS = {
    "The heart": ("pumps blood through the body", "stores bile"),
    "The kidney": ("filters the blood", "makes insulin"),
    "The pancreas": ("makes insulin", "filters the blood"),
    "The lung": ("takes up oxygen", "pumps blood through the body"),
    "The liver": ("makes bile", "takes up oxygen"),
    "The stomach": ("breaks down food with acid", "makes bile"),
    "The skin": ("keeps out germs", "breaks down food with acid"),
    "The bone marrow": ("makes blood cells", "keeps out germs"),
}


@READERS.register("embedded")
def embedded(path: Any = None, *, split: str | None = None, on_bad: Any = None) -> Iterator[QaExample]:
    """Yes and no questions about organs, and what they do, each with its passage."""
    for number, (organ, (does, does_not)) in enumerate(_FACTS.items()):
        passage = (f"{organ} {does}.",)
        if (number % 4 == 0) == (split == "test"):
            for claim, answer in ((does, "yes"), (does_not, "no")):
                question = f"Is it true that {organ[0].lower()}{organ[1:]} {claim}?"
                yield QaExample(question, "yesno", passage, ((answer,),), YESNO, f"{number}{answer}")
            yield QaExample(f"What {does}?", "factoid", passage, ((organ, organ.split()[-1]),), (), f"{number}w")
