"""A question in, an answer out, from passages that come with it or are retrieved.

    ask = QaPipeline.from_pretrained("runs/pubmedqa/42", shots=4)
    ask.use(corpus=passages, solved=answered_questions)
    ask("Do mitochondria play a role in programmed cell death?").text

Passages come from an index over `corpus` where a question brings none. Answered questions that are nearest to the one
asked stand before it. A question with options is decided by their probability, any other is generated; below a wanted
probability the pipeline abstains.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apps.qa import prompts
from apps.qa.data import QaExample, example_from
from apps.qa.evaluator import Answer, QaEvaluator
from apps.qa.passages import Embed, Passages, Retrieval, snippets
from core.config.schema import key
from core.data.segments import prompt_segments, render
from core.errors import AppInputError
from core.inference.pipeline import BasePipeline, PipelineConfig
from core.inference.request import Output, Request, Result
from core.retrieval import Bm25Index


@dataclass(frozen=True)
class QaConfig(PipelineConfig):
    """Settings of a question-answering pipeline."""

    template: str | None = key("rag", "rag shows passages, closed does not")
    shots: int = key(0, "answered questions before the one asked", least=0)
    retrieval: Retrieval = key("bm25", "bm25, dense or hybrid")
    passages: int = key(3, "how many are retrieved for a question that brings none", least=0)
    extra: int = key(0, "how many are retrieved beside those that a question brings", least=0)
    expand: int = key(0, "words added to a lexical query", least=0)
    snippets: int = key(0, "sentences kept of all passages; 0 keeps them whole", least=0)
    context_chars: int = key(1500, "characters of passages of a question", least=0)
    shot_chars: int = key(300, "characters of passages of a shot", least=0)
    answers: prompts.Form = key("text", "json keeps the answers of factoids and lists to an array of names")
    abstain: float = key(0.0, "a question gets the answer '' when no option has this probability", least=0, most=1)


class QaPipeline(BasePipeline):
    """Answers text, dictionaries or `QaExample`s; lists give lists."""

    app = "qa"
    example_cls = QaExample
    templates = prompts.TEMPLATES
    default_template = "rag"
    evaluator_cls = QaEvaluator
    config_cls = QaConfig
    config: QaConfig

    def __init__(self, engine: Any, tokenizer: Any, config: QaConfig | None = None) -> None:
        super().__init__(engine, tokenizer, config)
        self.solved: list[QaExample] = []
        self.passages: Passages | None = None
        self._shots: Bm25Index | None = None
        self._names: Any = None

    def use(
        self, corpus: Sequence[str] = (), solved: Sequence[QaExample] = (), embed: Embed | None = None
    ) -> QaPipeline:
        """Passages to retrieve from, and answered questions to show. Returns the pipeline.

        Args:
            embed: gives vectors of passages and questions, for dense and hybrid retrieval; an `EmbeddingPipeline` does.

        Raises:
            AppInputError: a corpus that is no list of texts. DataError: an answered question that is none.
        """
        if not isinstance(corpus, (list, tuple)) or not all(isinstance(text, str) and text.strip() for text in corpus):
            raise AppInputError(
                "the corpus is no list of texts", hint='use(corpus=["a passage", …]), none of them empty'
            )
        self.passages = Passages(corpus, embed) if corpus else None
        self.solved = [example for example in map(self.to_example, solved) if example.answers]
        questions = [example.question for example in self.solved]
        self._shots = Bm25Index([str(number) for number in range(len(questions))], questions) if questions else None
        return self

    def to_example(self, given: Any, **fields: Any) -> QaExample:
        if isinstance(given, QaExample):
            return dataclasses.replace(given, **fields) if fields else given
        if isinstance(given, str):
            given = {"question": given}
        if not isinstance(given, Mapping):
            raise AppInputError(
                f"cannot answer {type(given).__name__}", hint="give a question, a dictionary or a QaExample"
            )
        return example_from({**given, **fields})

    def retrieve(self, example: QaExample) -> tuple[str, ...]:
        """The passages of a question: its own and `extra` ones, or those found in the corpus."""
        config, found = self.config, list(example.contexts)
        wanted = config.extra if found else config.passages
        if self.passages is not None and wanted:
            places = self.passages.search(example.question, wanted + len(found), config.retrieval, config.expand)
            others = [self.passages.texts[place] for place in places]
            found += [text for text in others if text not in example.contexts][:wanted]
        if config.snippets and config.template != "closed":
            return snippets(example.question, found, config.snippets)
        return tuple(found)

    def shots_for(self, example: QaExample) -> list[QaExample]:
        """Answered questions of the same type, the nearest last; never the question itself."""
        if not self.config.shots or self._shots is None:
            return []
        hits = self._shots.search([example.question], len(self.solved))[0]
        order = [int(hit.id) for hit in hits]
        order += [number for number in range(len(self.solved)) if number not in set(order)]
        kind = [self.solved[i] for i in order if self.solved[i].type == example.type]
        others = [shot for shot in kind if shot.question != example.question]
        return others[: self.config.shots][::-1]

    def prepare(self, example: QaExample) -> Request:
        """The prompt. Shots are left out, the farthest first, until it fits the model."""
        found = self.retrieve(example)
        template = prompts.get_template(self.config.template or self.default_template)
        shots = self.shots_for(example)
        placed = dataclasses.replace(example, contexts=found)
        while True:
            before = prompts.shots_text(template, shots, self.config.shot_chars, self.config.answers)
            filled = prompts.fields(placed, before, self.config.context_chars)
            meta = {"passages": found, "shots": len(shots), "options": example.options, "warnings": []}
            request = self.request(prompt_segments(render(template, filled)), **meta)
            limit = getattr(self.engine, "context", None)
            if limit is None or len(request.ids) + 16 <= limit:
                form = self._form() if example.type in prompts.NAMED else None
                return dataclasses.replace(request, stop=("\n",), constraint=form)
            if not shots:
                raise AppInputError(
                    f"the question and its passages are too long: {len(request.ids)} tokens, the model takes {limit}",
                    hint="set context_chars lower",
                )
            shots = shots[1:]

    def _form(self) -> Any:
        """What holds a generation to an array of names; None for free text, and without a tokenizer to count in."""
        if self.config.answers != "json" or self.tokenizer is None:
            return None
        if self._names is None:
            from core.inference.constrained.constraint import JsonConstraint

            config = getattr(getattr(self.engine, "model", None), "config", None)
            size = getattr(config, "vocab_size", None)
            self._names = JsonConstraint.of_schema(prompts.NAMES, self.tokenizer, size)
        return self._names

    def finish(self, request: Request, output: Output) -> Result:
        """The first line, or the names of a JSON answer; with the passages that contain it as citations."""
        text, names = output.text.strip().split("\n")[0].strip(), []
        if request.constraint is not None:
            names = [name.strip() for name in json.loads(output.text) if name.strip()]
            text = "; ".join(names)
        wanted = [name.lower() for name in names or [text] if name]
        cited = [n for n, p in enumerate(request.meta["passages"]) if any(name in p.lower() for name in wanted)]
        return Result(text, {"citations": cited, "warnings": [] if text else ["the model returned nothing"]})

    def target_text(self, target: str) -> str:
        return f" {target}"

    def predict(self, examples: Sequence[Any], **gen: Any) -> list[Any]:
        """Of a yes-no question's options the one that the model holds most probable, or "" to abstain; of any other an
        `Answer` with the passages that hold its names."""
        examples = [self.to_example(example) for example in examples]
        found: list[Any] = [None] * len(examples)
        choices = [(i, option) for i, e in enumerate(examples) if e.type == "yesno" for option in e.options]
        if choices:
            values = self.score([examples[i] for i, _ in choices], [option for _, option in choices])
            scored: dict[int, dict[str, float]] = {}
            for (number, option), value in zip(choices, values):
                scored.setdefault(number, {})[option] = value
            for number, own in scored.items():
                best = max(own, key=lambda option: own[option])
                sure = 1 / sum(math.exp(value - own[best]) for value in own.values())
                found[number] = best if sure >= self.config.abstain else ""
        rest = [i for i, answer in enumerate(found) if answer is None]
        for number, result in zip(rest, self.batch([examples[i] for i in rest], **gen)):
            shown = tuple(result.meta["passages"])
            found[number] = Answer(result.text, tuple(shown[place] for place in result.meta["citations"]), shown)
        return found
