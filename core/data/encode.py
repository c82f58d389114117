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
Tokenise = Callable[[str], list[int]]


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
    ids = [i for t in (texts if mode == "pieces" else ["".join(texts)]) for i in tokenise(t)]
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
    """`encode` of each row in turn; a thousand rows are tokenised in one call, on the tokenizer's threads."""
    rows = iter(rows)
    while chunk := list(islice(rows, CHUNK)):
        tokenise = _ahead([t for segments in chunk for t in _texts(segments, mode)], tokenizer)
        for segments in chunk:
            yield _encode(segments, tokenizer, tokenise, mode, max_length, True)


def _encode(
    segments: Sequence[Segment], tokenizer: Any, tokenise: Tokenise, mode: Mode, max_length: int | None, eos: bool
) -> Encoded | None:
    segments = _until_last_target(segments)
    ids, labels, straddled = (_by_piece if mode == "pieces" else _by_text)(segments, tokenise)
    end, prefix = tokenizer.eos_token_id, _prefix(tokenizer)
    if eos and segments and segments[-1].train and (not ids or ids[-1] != end):
        ids, labels = [*ids, end], [*labels, end]
    if not (prefix and ids[: len(prefix)] == prefix):
        ids, labels = prefix + ids, [IGNORE] * len(prefix) + labels
    labels[: len(prefix)] = [IGNORE] * len(prefix)
    cut = 0
    if max_length is not None and len(ids) > max_length:
        cut = len(ids) - max_length
        first = next((i for i, label in enumerate(labels) if label != IGNORE), len(labels))
        at = _cut_at(segments, tokenizer, mode, len(prefix), first, cut)
        if at is None:
            return None
        ids, labels = ids[:at] + ids[at + cut :], labels[:at] + labels[at + cut :]
    return Encoded(ids, labels, cut, straddled)


def _cut_at(segments: Sequence[Segment], tokenizer: Any, mode: Mode, begin: int, first: int, count: int) -> int | None:
    """Where `count` tokens can go: the end of the longest field, else the start; None when they would not suffice.

    Args:
        begin, first: where the tokens after the tokenizer's beginning start, and where the first target does.
    """
    prompt = prompt_segments(segments)
    longest, position = (0, 0), 0
    for segment in prompt:
        if segment.source is not None and segment.source[1] - segment.source[0] > longest[1] - longest[0]:
            longest = (position + segment.source[0], position + segment.source[1])
        position += len(segment.text)
    if longest == (0, 0) or not getattr(tokenizer, "is_fast", False):
        return begin if begin + count <= first else None
    texts = [s.text for s in prompt] if mode == "pieces" else ["".join(s.text for s in prompt)]
    spans, position = [], 0
    for text in texts:
        places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        spans += [(a + position, b + position) for a, b in places]
        position += len(text)
    # the prompt's tokens stand right before the first target; a beginning in its own text is among them
    shift = first - len(spans)
    inside = [i + shift for i, (a, b) in enumerate(spans) if longest[0] <= a < b <= longest[1]]
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


def _by_piece(segments: Sequence[Segment], tokenise: Tokenise) -> tuple[list[int], list[int], bool]:
    ids: list[int] = []
    labels: list[int] = []
    for segment in segments:
        piece = tokenise(segment.text)
        ids += piece
        labels += piece if segment.train else [IGNORE] * len(piece)
    return ids, labels, False


def _by_text(segments: Sequence[Segment], tokenise: Tokenise) -> tuple[list[int], list[int], bool]:
    text = "".join(s.text for s in segments)
    ids: list[int] = []
    labels: list[int] = []
    straddled = False
    start = 0
    for end, train in _borders(segments):
        whole = tokenise(text[:end])
        if whole[: len(ids)] == ids:
            new = whole[len(ids) :]
        else:
            straddled = True
            new = tokenise(text[start:end])
        ids = ids + new
        labels += new if train else [IGNORE] * len(new)
        start = end
    return ids, labels, straddled


def _one_by_one(tokenizer: Any) -> Tokenise:
    return lambda text: _tokenised([text], tokenizer)[0]


def _ahead(texts: list[str], tokenizer: Any) -> Tokenise:
    known = dict(zip(texts, _tokenised(texts, tokenizer)))
    return lambda text: known[text] if text in known else _tokenised([text], tokenizer)[0]


def _tokenised(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Ids without added tokens."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


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
