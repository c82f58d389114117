"""Text in one language in, text in another out.

    translate = TranslationPipeline.from_pretrained("embedded")
    translate("Guten Tag.", src="de", tgt="en").text

The app's part of a pipeline: what an input is, which prompt it becomes, and where an answer ends. Batching, engines,
saving and loading are the core's. A long text can go through sentence by sentence (`split="sentences"`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from apps.translation import prompts
from apps.translation.evaluator import TranslationEvaluator
from apps.translation.example import TranslationExample, example_from
from apps.translation.languages import direction
from apps.translation.metrics import has_term
from apps.translation.sentences import separators, split_lines
from core.data.segments import Template, prompt_segments, render
from core.errors import AppInputError, nearest
from core.inference.pipeline import BasePipeline, PipelineConfig
from core.inference.request import Event, Output, Request, Result, SamplingParams

_EXAMPLE_FIELDS = ("src", "tgt", "terms")


@dataclass(frozen=True)
class TranslationConfig(PipelineConfig):
    """Settings of a translation pipeline.

    Args:
        template: prompt template; it must be the one of training.
        src_lang, tgt_lang: languages of inputs that do not say theirs.
        split: "sentences" translates sentence by sentence and keeps the line structure.
    """

    template: str | None = "alma"
    src_lang: str = ""
    tgt_lang: str = ""
    split: Literal["none", "sentences"] = "none"


class TranslationPipeline(BasePipeline):
    """Translate text, dictionaries or `TranslationExample`s; lists give lists.

    A call takes `src=` and `tgt=` languages, `terms=` that must be used, `split=`, and every sampling setting
    (`beams`, `max_new_tokens`, ...). An empty text gives an empty result with a warning in `meta`.
    """

    app = "translation"
    example_cls = TranslationExample
    templates = prompts.TEMPLATES
    default_template = "alma"
    evaluator_cls = TranslationEvaluator
    config_cls = TranslationConfig
    config: TranslationConfig

    def to_example(self, given: Any, **fields: Any) -> TranslationExample:
        """Text with languages, a dictionary, or an example.

        Raises:
            AppInputError: not an input, or an unknown argument. LanguageError: a wrong language.
        """
        for name in fields:
            if name not in _EXAMPLE_FIELDS:
                known = (*_EXAMPLE_FIELDS, "split", *SamplingParams.__dataclass_fields__)
                raise AppInputError(
                    f"unknown argument '{name}'", hint=nearest(name, known) or f"known: {', '.join(known)}"
                )
        src, tgt = fields.get("src") or self.config.src_lang, fields.get("tgt") or self.config.tgt_lang
        terms = tuple((a, b) for a, b in fields.get("terms") or ())
        if isinstance(given, str):
            return TranslationExample(given, None, src, tgt, terms)
        if isinstance(given, TranslationExample):
            return dataclasses.replace(given, src_lang=given.src_lang or src, tgt_lang=given.tgt_lang or tgt)
        if isinstance(given, Mapping):
            return example_from(dict(given), src=src, tgt=tgt)
        raise AppInputError(
            f"cannot translate {type(given).__name__}", hint="give text, a dictionary or a TranslationExample"
        )

    @property
    def template(self) -> Template:
        return prompts.get_template(self.config.template or self.default_template)

    def prepare(self, example: TranslationExample) -> Request:
        """The prompt. Raises `AppInputError` when source and a translation of its length exceed the model's context."""
        src, tgt = direction(example.src_lang, example.tgt_lang)
        meta: dict[str, Any] = {"src_lang": src.code, "tgt_lang": tgt.code, "terms": example.terms, "warnings": []}
        if not example.src.strip():
            return Request([], meta={**meta, "answer": "", "warnings": ["the source text is empty"]})
        if example.terms and not prompts.uses_terms(self.template):
            meta["warnings"].append(f"template '{self.template.name}' has no place for terms; alma_terms has")
        request = self.request(prompt_segments(render(self.template, prompts.fields(example))), **meta)
        self._check_room(request, example)
        return dataclasses.replace(request, stop=("\n",))

    def _check_room(self, request: Request, example: TranslationExample) -> None:
        limit = getattr(self.engine, "context", None)
        if limit is None or self.tokenizer is None or len(request.ids) * 2 <= limit:
            return
        source = len(self.tokenizer(example.src, add_special_tokens=False)["input_ids"])
        if len(request.ids) + source > limit:
            raise AppInputError(
                f"the source is too long: {source} tokens, with prompt and room for the translation "
                f"{len(request.ids) + source}, and the model's limit is {limit}",
                hint='use split="sentences", or shorten the text',
            )

    def finish(self, request: Request, output: Output) -> Result:
        """The first line of the output; a translation may contain anything else, language names included."""
        text = output.text.lstrip(" ").split("\n")[0].strip()
        warnings = list(request.meta["warnings"])
        if not text:
            warnings.append("the model returned nothing")
        if output.finish_reason == "length" and "\n" not in output.text:
            warnings.append("the output was cut at max_new_tokens")
        missed = [t for _, t in request.meta["terms"] if not has_term(t, text, request.meta["tgt_lang"])]
        if missed:
            warnings.append(f"terms not used: {', '.join(missed)}")
        return Result(text, {"warnings": warnings})

    def target_text(self, target: str) -> str:
        """The target with the separator of the template, as in training."""
        return self.template.segments[-1].text.format(tgt=prompts.one_line(target))

    def __call__(self, inputs: Any, *, split: str | None = None, **gen: Any) -> Any:
        """One `Result` for one input, a list for a list."""
        if not self._splits(split):
            return super().__call__(inputs, **gen)
        many = isinstance(inputs, (list, tuple))
        results = list(self.batch(inputs if many else [inputs], split=split, **gen))
        return results if many else results[0]

    def batch(self, iterable: Iterable[Any], *, split: str | None = None, **gen: Any) -> Iterator[Result]:
        """Results of a stream of inputs; cut into sentences they share batches, and come back in order."""
        if not self._splits(split):
            yield from super().batch(iterable, **gen)
            return
        fields = {name: gen.pop(name) for name in _EXAMPLE_FIELDS if name in gen}
        plans: list[tuple[TranslationExample, list[list[str]]]] = []

        def pieces() -> Iterator[TranslationExample]:
            for given in iterable:
                example = self.to_example(given, **fields)
                plans.append((example, split_lines(example.src)))
                yield from _pieces(*plans[-1])

        ready: list[Result] = []
        for result in super().batch(pieces(), **{**gen, "ordered": True}):
            ready.append(result)
            while plans and sum(map(len, plans[0][1])) <= len(ready):
                yield _joined(*plans.pop(0), ready)
        while plans:
            yield _joined(*plans.pop(0), ready)

    def stream(self, given: Any, *, split: str | None = None, **gen: Any) -> Iterator[Event]:
        """Text events whose concatenation is the translation, then `done` with the result."""
        if not self._splits(split):
            yield from _trimmed(super().stream(given, **gen))
            return
        fields = {name: gen.pop(name) for name in _EXAMPLE_FIELDS if name in gen}
        example = self.to_example(given, **fields)
        lines, elapsed, tokens = split_lines(example.src), 0.0, 0
        results: list[Result] = []
        between = separators(lines, example.tgt_lang)
        if between[0]:
            yield Event("text", between[0])
        for piece, separator in zip(_pieces(example, lines), between[1:]):
            start, count = elapsed, tokens
            for event in _trimmed(super().stream(piece, **gen)):
                elapsed, tokens = start + event.t_ms, count + event.tokens
                if isinstance(event.result, Result):
                    results.append(event.result)
                else:
                    yield dataclasses.replace(event, t_ms=elapsed, tokens=tokens)
            if separator:
                yield Event("text", separator, elapsed, tokens)
        result = _joined(example, lines, results)
        yield Event("done", result.text, elapsed, tokens, result)

    def _splits(self, split: str | None) -> bool:
        chosen = split or self.config.split
        if chosen not in ("none", "sentences"):
            raise AppInputError(f"unknown split '{chosen}'", hint="use none or sentences")
        return chosen == "sentences"


def _pieces(example: TranslationExample, lines: Sequence[Sequence[str]]) -> Iterator[TranslationExample]:
    direction(example.src_lang, example.tgt_lang)
    for line in lines:
        yield from (dataclasses.replace(example, src=sentence, tgt=None) for sentence in line)


def _joined(example: TranslationExample, lines: Sequence[Sequence[str]], ready: list[Result]) -> Result:
    """One result out of the next results for these lines, which are taken off `ready`."""
    count = sum(map(len, lines))
    parts, ready[:] = ready[:count], ready[count:]
    between = separators(lines, example.tgt_lang)
    text = between[0] + "".join(part.text + after for part, after in zip(parts, between[1:]))
    warnings = [warning for part in parts for warning in part.meta["warnings"]]
    if not parts:
        text, warnings = "", ["the source text is empty"]
    meta = {
        "prompt": "\n\n".join(part.meta["prompt"] for part in parts),
        "prompt_tokens": sum(part.meta["prompt_tokens"] for part in parts),
        "tokens": sum(part.meta["tokens"] for part in parts),
        "finish_reason": "length" if any(part.meta["finish_reason"] == "length" for part in parts) else "stop",
        "sentences": count,
        "exchanges": [(part.meta["prompt"], part.text) for part in parts],
        "warnings": list(dict.fromkeys(warnings)),
    }
    # Sentences of one batch carry the same time, so equal times count once.
    return Result(text, meta, {"ms": sum({part.timings.get("ms", 0.0) for part in parts})})


def _trimmed(events: Iterator[Event]) -> Iterator[Event]:
    """The events up to the first line break, without white space at the ends of their joined text."""
    held, begun, ended = "", False, False
    for event in events:
        if event.kind != "text":
            yield event
            continue
        if ended:
            continue
        line, line_break, _ = event.text.partition("\n")
        ended = bool(line_break)
        text = held + line if begun else line.lstrip()
        kept = text.rstrip()
        held, begun = text[len(kept) :], begun or bool(kept)
        if kept:
            yield dataclasses.replace(event, text=kept)
