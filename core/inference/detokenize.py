"""Text out of a growing list of ids, never half a character.

Bytes of one character may come in several tokens, and a tokenizer may put or drop a space depending on what stands
before. So a short window, from the tokens given out last to the newest, is decoded at every step, and its text is given
out only when it is final: it must not end in an incomplete character, nor in a run of byte tokens, whose text may still
turn into replacement characters as a whole. What is given out, joined, equals the decoding of all ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "\ufffd"


class Detokenizer:
    """Feed ids with `add`, end with `flush`; each returns the new text."""

    def __init__(self, tokenizer: Any, skip_special: bool = True) -> None:
        self.tokenizer, self.skip_special = tokenizer, skip_special
        self.ids: list[int] = []
        self._bytes = _byte_tokens(tokenizer)
        self._skipped = frozenset(tokenizer.all_special_ids) if skip_special else frozenset()
        self._parts: list[str] = []
        self._window = self._read = 0

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=self.skip_special, clean_up_tokenization_spaces=False)

    def add(self, ids: Sequence[int]) -> str:
        """The text that became final."""
        self.ids.extend(ids)
        if next((i for i in reversed(self.ids) if i not in self._skipped), None) in self._bytes:
            return ""
        known = self._decode(self.ids[self._window : self._read])
        text = self._decode(self.ids[self._window :])
        if len(text) <= len(known) or text.endswith(_INCOMPLETE) or not text.startswith(known):
            return ""
        self._window, self._read = self._read, len(self.ids)
        self._parts.append(text[len(known) :])
        return self._parts[-1]

    def flush(self) -> str:
        """What is left, incomplete bytes included as replacement characters."""
        given = "".join(self._parts)
        rest = self._decode(self.ids)[len(given) :]
        self._parts.append(rest)
        self._window = self._read = len(self.ids)
        return rest


def _byte_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids of <0x00> … <0xFF>, which some vocabularies fall back to."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    ids = tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in range(256)])
    return frozenset(i for i in ids if i is not None and i != unknown)
