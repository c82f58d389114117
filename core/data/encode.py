"""Ids and labels from segments: the one encoding, for training and for serving.

Two modes. *offsets* tokenises the row as one text; *pieces* tokenises each segment alone and joins the ids, for
models that are fed pieces at inference. In both, the prompt's ids in training are the prompt's ids in serving. Pieces
have that by construction. A text has it only if the tokenizer splits it where the prompt ends, so the prompt is also
tokenised alone: when its ids open the ids of the whole text, the remainder is what is learnt; when they do not, a
token crosses the border, the remainder is tokenised on its own, and the row is counted as straddled.

End of text is appended as an id, not as text, and carries loss exactly once. Labels come from places, never from
comparing ids with the padding id: with pad = eos that comparison would erase every end of text. What the tokenizer
puts in front (a beginning of text) is put once, also when the template already opens with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from core.data.segments import Segment, prompt_segments
from core.errors import DataError

IGNORE = -100
CHUNK = 1000
Mode = Literal["offsets", "pieces"]
Spans = list[tuple[int, int]]
Tokenise = Callable[[str], tuple[list[int], Spans]]


@dataclass
class Encoded:
    """One row as ids (T,) and labels (T,): `IGNORE` where there is no loss.

    Args:
        cut: source tokens removed to fit. straddled: whether a token crossed a border between given and learnt.
    """

    input_ids: list[int]
    labels: list[int]
    cut: int = 0
    straddled: bool = False

    @property
    def trained(self) -> int:
        return sum(label != IGNORE for label in self.labels)


@dataclass
class EncodeStats:
    """What encoding did to a set of rows. `worst` holds the numbers of the first rows that were dropped."""

    rows: int = 0
    dropped: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    straddled: int = 0
    tokens: int = 0
    trained: int = 0
    worst: list[int] = field(default_factory=list)

    def add(self, encoded: Encoded | None) -> bool:
        """Count one row; True when it is kept."""
        self.rows += 1
        if encoded is None or encoded.trained == 0:
            self.dropped += 1
            if len(self.worst) < 10:
                self.worst.append(self.rows - 1)
            return False
        self.cut_rows += encoded.cut > 0
        self.cut_tokens += encoded.cut
        self.straddled += encoded.straddled
        self.tokens += len(encoded.input_ids)
        self.trained += encoded.trained
        return True

    def check(self, limit: float = 0.005) -> None:
        """Raise when nothing would be learnt, or when borders are straddled in more than `limit` of the rows."""
        if self.rows == 0:
            raise DataError("no rows to train on")
        if self.trained == 0:
            raise DataError(
                f"no token of {self.rows} rows carries loss",
                hint="raise data.max_length (a target that does not fit drops its row); "
                "check that the template has a learnt segment and that targets are not empty",
            )
        if self.straddled > limit * self.rows:
            raise DataError(
                f"{self.straddled} of {self.rows} rows have a token across the border of prompt and target",
                hint="use mode: pieces, or move the space at the prompt's end to the start of the target",
            )

    def summary(self) -> str:
        """One line for a person."""
        line = f"{self.rows - self.dropped} rows, {self.tokens} tokens, {self.trained} trained"
        if self.cut_rows:
            line += f"; {self.cut_tokens} source tokens cut from {self.cut_rows} rows"
        if self.dropped:
            line += f"; {self.dropped} rows dropped as their target does not fit (first: {self.worst[0] + 1})"
        if self.straddled:
            line += f"; {self.straddled} rows with a token across the border"
        return line


def encode_prompt(segments: Sequence[Segment], tokenizer: Any, mode: Mode = "offsets") -> list[int]:
    """The ids a model is given: the leading untrained segments, with the tokenizer's own beginning, without an end."""
    texts = [s.text for s in prompt_segments(segments)]
    tokenise = _one_by_one(tokenizer)
    ids = [i for t in (texts if mode == "pieces" else ["".join(texts)]) for i in tokenise(t)[0]]
    prefix = _prefix(tokenizer)
    return ids if prefix and ids[: len(prefix)] == prefix else prefix + ids


def encode(
    segments: Sequence[Segment],
    tokenizer: Any,
    *,
    mode: Mode = "offsets",
    max_length: int | None = None,
    eos: bool = True,
) -> Encoded | None:
    """Ids and labels of one row; None when the row cannot be made to fit in `max_length`.

    What is cut is the end of the longest field before the first target (`Segment.source`); without such a field, the
    row's start. Instructions, cues, targets and end of text are never cut. Given segments after the last target are
    left out: no loss depends on them, and the end of text has to follow the target.
    """
    return _encode(segments, tokenizer, _one_by_one(tokenizer), mode, max_length, eos)


def encode_rows(
    rows: Iterable[Sequence[Segment]], tokenizer: Any, *, mode: Mode = "offsets", max_length: int | None = None
) -> tuple[list[Encoded], EncodeStats]:
    """Every row encoded, rows that do not fit dropped and counted; raises `DataError` when nothing would be learnt."""
    stats, out = EncodeStats(), []
    for encoded in encode_stream(rows, tokenizer, mode=mode, max_length=max_length):
        if stats.add(encoded):
            out.append(encoded)
    stats.check()
    return out, stats


def encode_stream(
    rows: Iterable[Sequence[Segment]], tokenizer: Any, *, mode: Mode = "offsets", max_length: int | None = None
) -> Iterable[Any]:
    """`encode` of each row in turn, tokenising a thousand rows in one call, which is several times faster."""
    rows = iter(rows)
    while chunk := list(islice(rows, CHUNK)):
        tokenise = _ahead([t for segments in chunk for t in _texts(segments, mode)], tokenizer)
        for segments in chunk:
            yield _encode(segments, tokenizer, tokenise, mode, max_length, True)


def _encode(
    segments: Sequence[Segment], tokenizer: Any, tokenise: Tokenise, mode: Mode, max_length: int | None, eos: bool
) -> Encoded | None:
    segments = _until_last_target(segments)
    ids, labels, spans, straddled = (_by_piece if mode == "pieces" else _by_text)(segments, tokenise)
    end = tokenizer.eos_token_id
    if eos and segments and segments[-1].train and (not ids or ids[-1] != end):
        ids, labels, spans = [*ids, end], [*labels, end], [*spans, (-1, -1)]
    prefix = _prefix(tokenizer)
    if prefix and ids[: len(prefix)] == prefix:
        labels[: len(prefix)] = [IGNORE] * len(prefix)
        ids, labels, spans = ids[len(prefix) :], labels[len(prefix) :], spans[len(prefix) :]
    cut = 0
    if max_length is not None and len(prefix) + len(ids) > max_length:
        cut = len(prefix) + len(ids) - max_length
        at = _cut_at(segments, labels, spans, cut)
        if at is None:
            return None
        ids, labels = ids[:at] + ids[at + cut :], labels[:at] + labels[at + cut :]
    return Encoded(prefix + ids, [IGNORE] * len(prefix) + labels, cut, straddled)


def _cut_at(segments: Sequence[Segment], labels: list[int], spans: Spans, count: int) -> int | None:
    """Where `count` tokens can go: the end of the longest field, else the start; None when they would not suffice."""
    first = next((i for i, label in enumerate(labels) if label != IGNORE), len(labels))
    start, end, position = 0, 0, 0
    for segment in prompt_segments(segments):
        if segment.source is not None and segment.source[1] - segment.source[0] > end - start:
            start, end = position + segment.source[0], position + segment.source[1]
        position += len(segment.text)
    if end == start or not spans or spans[0] == (-1, -1):
        return 0 if count <= first else None
    inside = [i for i in range(first) if start <= spans[i][0] and spans[i][1] <= end and spans[i][0] < spans[i][1]]
    # at least one token of the field stays: a row without its source teaches to invent
    return inside[-1] + 1 - count if len(inside) > count else None


def _until_last_target(segments: Sequence[Segment]) -> Sequence[Segment]:
    last = max((i for i, s in enumerate(segments) if s.train), default=len(segments) - 1)
    return segments[: last + 1]


def _borders(segments: Sequence[Segment]) -> list[tuple[int, bool]]:
    """Ends of the runs of given or learnt characters, and whether the run that ends there is learnt."""
    borders: list[tuple[int, bool]] = []
    position = 0
    for segment in segments:
        position += len(segment.text)
        if borders and borders[-1][1] == segment.train:
            borders.pop()
        borders.append((position, segment.train))
    return borders


def _texts(segments: Sequence[Segment], mode: Mode) -> list[str]:
    segments = _until_last_target(segments)
    if mode == "pieces":
        return [s.text for s in segments]
    text = "".join(s.text for s in segments)
    return [text[:end] for end, _ in _borders(segments)]


def _by_piece(segments: Sequence[Segment], tokenise: Tokenise) -> tuple[list[int], list[int], Spans, bool]:
    ids: list[int] = []
    labels: list[int] = []
    spans: Spans = []
    position = 0
    for segment in segments:
        piece, places = tokenise(segment.text)
        ids += piece
        labels += piece if segment.train else [IGNORE] * len(piece)
        spans += _moved(places, position)
        position += len(segment.text)
    return ids, labels, spans, False


def _by_text(segments: Sequence[Segment], tokenise: Tokenise) -> tuple[list[int], list[int], Spans, bool]:
    text = "".join(s.text for s in segments)
    ids: list[int] = []
    labels: list[int] = []
    spans: Spans = []
    straddled = False
    start = 0
    for end, train in _borders(segments):
        whole, places = tokenise(text[:end])
        if whole[: len(ids)] == ids:
            new, spans = whole[len(ids) :], spans + places[len(ids) :]
        else:
            straddled = True
            new, places = tokenise(text[start:end])
            spans = spans + _moved(places, start)
        ids = ids + new
        labels += new if train else [IGNORE] * len(new)
        start = end
    return ids, labels, spans, straddled


def _moved(spans: Spans, by: int) -> Spans:
    return [(a + by, b + by) if b >= 0 else (a, b) for a, b in spans]


def _one_by_one(tokenizer: Any) -> Tokenise:
    return lambda text: _tokenised([text], tokenizer)[0]


def _ahead(texts: list[str], tokenizer: Any) -> Tokenise:
    known = dict(zip(texts, _tokenised(texts, tokenizer)))
    return lambda text: known[text] if text in known else _tokenised([text], tokenizer)[0]


def _tokenised(texts: list[str], tokenizer: Any) -> list[tuple[list[int], Spans]]:
    """Ids and character spans without added tokens; a tokenizer in Python knows no spans, all are then (-1, -1)."""
    if not texts:
        return []
    fast = bool(getattr(tokenizer, "is_fast", False))
    out = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=fast, return_attention_mask=False)
    ids = [list(row) for row in out["input_ids"]]
    spans = out["offset_mapping"] if fast else [[(-1, -1)] * len(row) for row in ids]
    return [(row, list(places)) for row, places in zip(ids, spans)]


def _prefix(tokenizer: Any) -> list[int]:
    """What the post-processor adds in front, read off an encoding once, so that any post-processor is covered."""
    known = getattr(tokenizer, "_graft_prefix", None)
    if known is None:
        known = tokenizer._graft_prefix = _read_prefix(tokenizer)
    return list(known)


def _read_prefix(tokenizer: Any) -> list[int]:
    for text in ("a", "the", "0", *islice((t for t in tokenizer.get_vocab() if t.isalnum()), 3)):
        without = tokenizer(text, add_special_tokens=False)["input_ids"]
        with_specials = tokenizer(text, add_special_tokens=True)["input_ids"]
        for start in range(len(with_specials) - len(without) + 1 if without else 0):
            if with_specials[start : start + len(without)] == without:
                return list(with_specials[:start])
    return []
