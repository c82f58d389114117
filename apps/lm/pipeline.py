"""Continue a text, and say how probable texts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apps.lm.data import TextExample
from core.data.segments import Segment
from core.errors import AppInputError
from core.inference.pipeline import BasePipeline
from core.inference.request import Output, Request, Result


class LmPipeline(BasePipeline):
    """`pipeline("Once upon")` continues the text; `predict` gives log-probabilities for the evaluator."""

    app = "lm"
    example_cls = TextExample

    def to_example(self, given: Any) -> TextExample:
        return TextExample(given) if isinstance(given, str) else super().to_example(given)

    def prepare(self, example: TextExample) -> Request:
        if not example.text:
            raise AppInputError("there is nothing to continue", hint="give at least one character")
        return self.request([Segment(example.text)])

    def finish(self, request: Request, output: Output) -> Result:
        return Result(output.text)

    def predict(self, examples: Sequence[TextExample], **gen: Any) -> list[dict[str, float]]:
        """For each document its summed log-probability in nats, its tokens and its bytes.

        A document is conditioned on end of text, as in training, so that its first token counts too.
        """
        eos, found = self.tokenizer.eos_token_id, []
        limit = (getattr(self.engine, "context", None) or 1024) - 1
        pairs = []
        for example in examples:
            ids = self.tokenizer(example.text, add_special_tokens=False)["input_ids"][:limit]
            pairs.append(([eos], ids))
        for start in range(0, len(pairs), 16):
            part = pairs[start : start + 16]
            for (_, ids), mean in zip(part, self.engine.score(part)):
                size = len(self.tokenizer.decode(ids).encode("utf-8"))
                found.append({"logprob": mean * len(ids), "tokens": len(ids), "bytes": size})
        return found
