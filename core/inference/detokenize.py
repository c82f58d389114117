"""Text out of a growing list of ids, never half a character.

Bytes of one character may come in several tokens, and a tokenizer may put or drop a space depending on what stands
before; so the text of a short window is decoded again at every step and only what is final is given out. What is given
out, joined, equals the decoding of all ids.
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
        self._given = ""

    def _decode(self) -> str:
        return self.tokenizer.decode(
            self.ids, skip_special_tokens=self.skip_special, clean_up_tokenization_spaces=False
        )

    def add(self, ids: Sequence[int]) -> str:
        """The text that became final."""
        self.ids.extend(ids)
        text = self._decode()
        stable = len(text)
        while stable and text[stable - 1] == _INCOMPLETE:
            stable -= 1
        return self._advance(text[:stable])

    def flush(self) -> str:
        """What is left, incomplete bytes included as replacement characters."""
        return self._advance(self._decode())

    def _advance(self, text: str) -> str:
        if not text.startswith(self._given) or len(text) <= len(self._given):
            return ""
        new, self._given = text[len(self._given) :], text
        return new
