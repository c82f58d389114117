"""A real model that is made to say given texts: every token goes through it, and only its choice is taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.inference.engines.prefix import PrefixEngine


class Dictated(PrefixEngine):
    """Answers request after request with `texts`, as far as its stop strings let it, and keeps what it was asked.

    Attributes:
        asked: ids of each request with those of its answer.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], context: int = 8192) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=context,
        )  # fmt: skip
        super().__init__(LlamaForCausalLM(config).eval(), tokenizer)
        self.texts, self.said, self.asked = list(texts), 0, list[list[int]]()

    def _forms(self, constraints: list[Any], length: int, room: int) -> list[Any]:  # type: ignore[override]
        words = self.tokenizer(self.texts[self.said], add_special_tokens=False)["input_ids"]
        words = [*words, self.tokenizer.eos_token_id]
        self.said += 1

        def force(input_ids: Any, scores: Any) -> Any:
            wanted = words[min(input_ids.shape[1] - length, len(words) - 1)]
            forced = scores.new_full(scores.shape, float("-inf"))
            forced[:, wanted] = 0.0
            return forced

        return [force]

    def _continue(self, request: Any, sampling: Any, stops: Any, room: int) -> Any:
        output = super()._continue(request, sampling, stops, room)
        self.asked.append([*request.ids, *output.ids])
        return output


def unique_prefixes(rows: Sequence[Sequence[int]]) -> int:
    """Ids of all rows when what they have in common from the start is counted once."""
    return len({tuple(row[:size]) for row in rows for size in range(1, len(row) + 1)})
