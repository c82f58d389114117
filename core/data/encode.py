"""Ids and labels from segments: the one encoding, for training and for serving.

Two modes. *offsets* tokenises the whole row once, and a token carries loss when its characters start inside a learnt
segment; a token that straddles the border counts as prompt. *pieces* tokenises each segment alone and joins the ids,
for models that are fed pieces at inference. In both, the prompt's ids in training are the ids in serving: in offsets
mode the prompt is tokenised together with whatever follows, so the border is forced by tokenising the prompt alone
first and keeping its ids; only what follows is taken from the joint tokenisation when the two agree.

End of text is appended as an id, not as text, and carries loss exactly once. Labels come from positions, never from
comparing ids with the padding id: with pad = eos that comparison would erase every end of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from core.data.segments import Segment, prompt_segments
from core.errors import DataError

IGNORE = -100
Mode = Literal["offsets", "pieces"]


@dataclass
class Encoded:
    """One row as ids (T,) and labels (T,): `IGNORE` where there is no loss.

    Args:
        cut: source tokens removed to fit. straddled: whether a token crossed the border between given and learnt.
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
    """What encoding did to a set of rows."""

    rows: int = 0
    dropped: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    straddled: int = 0
    tokens: int = 0
    trained: int = 0
    worst: list[int] = field(default_factory=list)

    def check(self, limit: float = 0.005) -> None:
        """Raise when nothing would be learnt, or when borders are straddled in more than `limit` of the rows."""
        if self.rows == 0:
            raise DataError("no rows to train on")
        if self.trained == 0:
            raise DataError(
                f"no token of {self.rows} rows carries loss ({self.dropped} rows were longer than max_length)",
                hint="raise data.max_length; check that the template has a learnt segment and that targets are not empty",
            )
        if self.straddled > limit * self.rows:
            raise DataError(
                f"{self.straddled} of {self.rows} rows have a token across the border of prompt and target",
                hint="use mode: pieces, or end the template's prompt where the tokenizer splits",
            )


def _prefix(tokenizer) -> list[int]:
    """What the post-processor adds in front: read off an encoding once, so that any post-processor is covered."""
    known = getattr(tokenizer, "_graft_prefix", None)
    if known is None:
        known = tokenizer._graft_prefix = _read_prefix(tokenizer)
    return list(known)


def _read_prefix(tokenizer) -> list[int]:
    with_specials = tokenizer("a", add_special_tokens=True)["input_ids"]
    without = tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(with_specials) - len(without) + 1):
        if with_specials[start : start + len(without)] == without:
            return list(with_specials[:start])
    return []


def encode_prompt(segments: Sequence[Segment], tokenizer, mode: Mode = "offsets") -> list[int]:
    """The ids a model is given: the leading untrained segments, with the tokenizer's own beginning, without an end."""
    prompt = prompt_segments(segments)
    if mode == "pieces":
        return _prefix(tokenizer) + _pieces(prompt, tokenizer)
    text = "".join(s.text for s in prompt)
    return _prefix(tokenizer) + _ids(tokenizer, text)


def encode(
    segments: Sequence[Segment],
    tokenizer,
    *,
    mode: Mode = "offsets",
    max_length: int | None = None,
    eos: bool = True,
) -> Encoded | None:
    """Ids and labels of one row; None when what is learnt alone exceeds `max_length`.

    The source is cut from its start, after the tokenizer's beginning; target and end of text are never cut.
    """
    prefix = _prefix(tokenizer)
    if mode == "pieces":
        ids, labels, straddled = _encode_pieces(segments, tokenizer)
    else:
        ids, labels, straddled = _encode_offsets(segments, tokenizer)
    if eos and segments and segments[-1].train:
        ids.append(tokenizer.eos_token_id)
        labels.append(tokenizer.eos_token_id)
    cut = 0
    if max_length is not None and len(prefix) + len(ids) > max_length:
        first = next((i for i, label in enumerate(labels) if label != IGNORE), len(labels))
        cut = len(prefix) + len(ids) - max_length
        if cut > first:
            return None
        ids, labels = ids[cut:], labels[cut:]
    return Encoded(prefix + ids, [IGNORE] * len(prefix) + labels, cut, straddled)


def _ids(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _pieces(segments: Sequence[Segment], tokenizer) -> list[int]:
    return [i for s in segments for i in _ids(tokenizer, s.text)]


def _encode_pieces(segments: Sequence[Segment], tokenizer) -> tuple[list[int], list[int], bool]:
    ids: list[int] = []
    labels: list[int] = []
    for segment in segments:
        piece = _ids(tokenizer, segment.text)
        ids += piece
        labels += piece if segment.train else [IGNORE] * len(piece)
    return ids, labels, False


def _encode_offsets(segments: Sequence[Segment], tokenizer) -> tuple[list[int], list[int], bool]:
    """Joint tokenisation where it agrees with the prompt alone; else prompt ids, then the rest on its own."""
    text = "".join(s.text for s in segments)
    prompt = "".join(s.text for s in prompt_segments(segments))
    joint = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = list(joint["input_ids"]), list(joint["offset_mapping"])
    head = _ids(tokenizer, prompt)
    if ids[: len(head)] != head:
        rest = tokenizer(text[len(prompt) :], add_special_tokens=False, return_offsets_mapping=True)
        ids = head + list(rest["input_ids"])
        spans = [(0, 0)] * len(head) + [(a + len(prompt), b + len(prompt)) for a, b in rest["offset_mapping"]]
        straddles = bool(prompt)
    else:
        straddles = False
    trained = []
    position = 0
    for segment in segments:
        if segment.train:
            trained.append((position, position + len(segment.text)))
        position += len(segment.text)
    labels = []
    for index, (token, (start, end)) in enumerate(zip(ids, spans)):
        inside = index >= len(head) and any(a <= start and (start < b or start == b == end) for a, b in trained)
        labels.append(token if inside else IGNORE)
        straddles |= any(start < a < end for a, _ in trained)
    return ids, labels, straddles


def encode_rows(
    rows, tokenizer, *, mode: Mode = "offsets", max_length: int | None = None
) -> tuple[list[Encoded], EncodeStats]:
    """Every row encoded, rows whose target does not fit dropped and counted; raises when nothing would be learnt."""
    stats, out = EncodeStats(), []
    for number, segments in enumerate(rows):
        stats.rows += 1
        encoded = encode(segments, tokenizer, mode=mode, max_length=max_length)
        if encoded is None or encoded.trained == 0:
            stats.dropped += 1
            stats.worst = [*stats.worst, number][:10]
            continue
        stats.cut_rows += encoded.cut > 0
        stats.cut_tokens += encoded.cut
        stats.straddled += encoded.straddled
        stats.tokens += len(encoded.input_ids)
        stats.trained += encoded.trained
        out.append(encoded)
    stats.check()
    return out, stats
