"""A form of text kept to while a model generates: state by state, and as a step between logits and choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from core.errors import AppInputError
from core.inference.constrained.automaton import DEAD, Automaton
from core.inference.constrained.json_schema import compile_schema
from core.inference.constrained.masks import Masks, Vocabulary, vocabulary_of


class JsonConstraint:
    """Text of one form, for one tokenizer; it holds no state of a generation and may be shared by many.

    Args:
        automaton: what the text must be. vocabulary: the tokenizer's.
    """

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary) -> None:
        self.automaton, self.vocabulary = automaton, vocabulary
        self.masks = Masks(automaton, vocabulary)

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any] | bool, tokenizer: Any, size: int | None = None) -> JsonConstraint:
        """JSON that is valid under `schema`. `size`: logits of the model, where there are more than tokens.

        Raises:
            SchemaError: a keyword that cannot be kept to, with its place.
        """
        return cls(compile_schema(schema), vocabulary_of(tokenizer, size or 0))

    @property
    def start(self) -> int:
        return self.automaton.start

    @property
    def shortest(self) -> int:
        """Tokens that surely suffice, the end of text included."""
        return int(self.automaton.distance[self.start]) + 1

    def check_budget(self, tokens: int) -> None:
        """Raise `AppInputError` when no text of the form surely fits into so many tokens."""
        if tokens < self.shortest:
            raise AppInputError(
                f"the shortest text of this form needs up to {self.shortest} tokens, and {tokens} are allowed",
                hint="raise max_new_tokens",
            )

    def allowed(self, state: int, budget: int) -> np.ndarray:
        """(V,) bool: tokens after which the text can still be ended within `budget` tokens, this one counted."""
        return self.masks.allowed(state, budget - 2)

    def advance(self, state: int, token: int) -> int:
        """The state after a token; the same state after an end of text."""
        if token in self.vocabulary.end:
            return state
        data = self.vocabulary.bytes[token] if token < len(self.vocabulary.bytes) else None
        return DEAD if data is None else self.automaton.step(state, data)

    def is_complete(self, state: int) -> bool:
        return self.automaton.accepts(state)


class ConstrainedLogits:
    """A logits processor of `generate`: tokens that would leave the form get −∞. Works for beams.

    Args:
        constraints: one for each row of the batch; None leaves the row free. prompt_length: tokens before the text.
        room: new tokens at most.
    """

    def __init__(self, constraints: list[JsonConstraint | None], prompt_length: int, room: int) -> None:
        self.constraints, self.prompt_length, self.room = constraints, prompt_length, room
        self._states: dict[tuple[int, tuple[int, ...]], int] = {}

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """scores (B·beams, V) with −∞ where a token is not allowed."""
        import torch

        beams = input_ids.shape[0] // len(self.constraints)
        written = input_ids[:, self.prompt_length :].tolist()
        budget = self.room - (input_ids.shape[1] - self.prompt_length)
        masks = np.ones(tuple(scores.shape), dtype=bool)
        states = {}
        for index, tokens in enumerate(written):
            row = index // beams
            constraint = self.constraints[row]
            if constraint is None:
                continue
            states[row, tuple(tokens)] = state = self._state(row, tuple(tokens))
            mask = constraint.allowed(state, budget)
            if not mask.any():
                mask = np.zeros_like(mask)
                mask[constraint.vocabulary.end] = True
            masks[index, : len(mask)] = mask[: scores.shape[1]]
            masks[index, len(mask) :] = False
        self._states = states
        return scores.masked_fill(~torch.from_numpy(masks).to(scores.device), float("-inf"))

    def _state(self, row: int, tokens: tuple[int, ...]) -> int:
        """The state after the tokens: one step from the call before, where their beginning was seen."""
        constraint = self.constraints[row]
        assert constraint is not None
        state = self._states.get((row, tokens[:-1])) if tokens else constraint.start
        rest = tokens[-1:]
        if state is None:
            state, rest = constraint.start, tokens
        for token in rest:
            state = state if state == DEAD else constraint.advance(state, token)
        return state
