"""Continue a text, and say how probable texts are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from apps.lm.data import TextExample
from core.data.segments import Segment
from core.errors import AppInputError, CheckpointError
from core.inference.pipeline import BasePipeline
from core.inference.pseudo import is_masked, pseudo_log_likelihoods
from core.inference.request import Output, Request, Result


class LmPipeline(BasePipeline):
    """`pipeline("Once upon")` continues the text; `predict` gives log-probabilities for the evaluator."""

    app = "lm"
    example_cls = TextExample

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Self:
        """As every pipeline's. Raises `CheckpointError` also for a stacked model, which gives vectors and no text."""
        from apps.lm.stacked.model import saved

        if options.get("engine", "hf") == "hf" and saved(str(path)) is not None:
            raise CheckpointError(
                "a stacked model continues no text", where=str(path), hint="open it with apps.lm.StackPipeline"
            )
        return super().from_pretrained(path, **options)

    def to_example(self, given: Any) -> TextExample:
        return TextExample(given) if isinstance(given, str) else super().to_example(given)

    def prepare(self, example: TextExample) -> Request:
        if not example.text:
            raise AppInputError("there is nothing to continue", hint="give at least one character")
        return self.request([Segment(example.text)])

    def finish(self, request: Request, output: Output) -> Result:
        return Result(output.text)

    def surprise(self, text: str, limit: int = 256) -> list[tuple[str, float]]:
        """The first `limit` tokens of a text, each with the bits that it costs after those before it.

        The first one follows an end of text, as in training. A character of several tokens stands at its first one.
        """
        example = self.to_example(text)
        if not example.text:
            raise AppInputError("there is no text to look at", hint="give at least one character")
        found = self.tokenizer(example.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, spans = found["input_ids"][:limit], found["offset_mapping"][:limit]
        before = [self.tokenizer.eos_token_id, *ids]
        size = getattr(self.engine, "context", None) or 1024
        pairs = [(before[max(0, i + 2 - size) : i + 1], [token]) for i, token in enumerate(ids)]
        nats = [mean for start in range(0, len(pairs), 32) for mean in self.engine.score(pairs[start : start + 32])]
        pieces, done = [], 0
        for (_, end), value in zip(spans, nats):
            pieces.append((example.text[done:end] if end > done else "", -value / math.log(2)))
            done = max(done, end)
        return pieces

    def predict(self, examples: Sequence[TextExample], **gen: Any) -> list[dict[str, float]]:
        """For each document its summed log-probability in nats, its tokens and its bytes.

        A document is conditioned on end of text, as in training, so that its first token counts too. One longer than
        the model's context is read in windows that overlap by half, so that every token of it counts once. A model that
        fills in hidden tokens gives its pseudo-log-likelihood, each token hidden in turn.
        """
        texts = [self.to_example(example).text for example in examples]
        model = getattr(self.engine, "model", None)
        if model is not None and is_masked(model):
            sizes = [len(text.encode("utf-8")) for text in texts]
            likely = pseudo_log_likelihoods(model, self.tokenizer, texts)
            return [{"logprob": s, "tokens": n, "bytes": size} for (s, n), size in zip(likely, sizes)]
        pieces = [(number, *piece) for number, text in enumerate(texts) for piece in self._windows(text)]
        found: list[dict[str, float]] = [{"logprob": 0.0, "tokens": 0, "bytes": len(t.encode("utf-8"))} for t in texts]
        for start in range(0, len(pieces), 16):
            part = pieces[start : start + 16]
            means = self.engine.score([(context, targets) for _, context, targets in part])
            for (number, _, targets), mean in zip(part, means):
                found[number]["logprob"] += mean * len(targets)
                found[number]["tokens"] += len(targets)
        return found

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        """(context, targets) ids that together have every token of the text among the targets once."""
        ids = [self.tokenizer.eos_token_id, *self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
        size = getattr(self.engine, "context", None) or 1024
        done = 1
        while done < len(ids):
            start = 0 if done == 1 else done - size // 2
            end = min(len(ids), start + size)
            yield ids[start:done], ids[done:end]
            done = end
