"""The pipeline that an app completes with three hooks and a user imports.

    with TranslationPipeline.from_pretrained("runs/quickstart/42") as translate:
        print(translate("Guten Tag", src="de", tgt="en"))

The base knows requests, batching, streaming, scoring, saving and loading; the app knows what an input is
(`to_example`), which prompt it makes (`prepare`) and what an output means (`finish`). A call mirrors the shape of its
input. Nothing is printed, no state is global, and overrides of one call never change the pipeline's configuration.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from core.config.files import whole_folder
from core.config.typed import Places, build
from core.data.encode import encode, encode_prompt
from core.data.segments import Segment, Template
from core.errors import AppInputError, CheckpointError, ConfigError
from core.inference.batching import length_buckets
from core.inference.request import Event, Output, Request, Result, SamplingParams
from core.inference.save import save_model
from core.inference.served import CARD, Served, read_card

_SAMPLING = {f.name for f in dataclasses.fields(SamplingParams)}


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Settings that every pipeline has; an app's config extends it. All can be given to `from_pretrained`.

    Args:
        template: name of the prompt template. mode: how prompts are encoded; both as in training.
        max_new_tokens, beams, temperature, top_p, top_k, seed: sampling of calls that do not give their own.
        kv: the key-value cache of generation: full, or kv8 or kv4 for one that rounds each token once.
    """

    template: str | None = None
    mode: Literal["offsets", "pieces"] = "offsets"
    max_new_tokens: int = 256
    beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    kv: Literal["full", "kv8", "kv4"] = "full"


class BasePipeline(Served):
    """Give `engine` (what generates) and `tokenizer`; or use `from_pretrained` or `from_model`."""

    example_cls: ClassVar[type] = str
    templates: ClassVar[Mapping[str, Template]] = {}
    default_template: ClassVar[str | None] = None
    evaluator_cls: ClassVar[type | None] = None
    config_cls: ClassVar[type[PipelineConfig]] = PipelineConfig
    from_training: ClassVar[tuple[str, ...]] = ("template", "mode")
    """Settings that a served model takes over from the options of its method."""

    def __init__(self, engine: Any, tokenizer: Any, config: PipelineConfig | None = None) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        self.config = config or self.config_cls()
        self.source: dict[str, Any] = {}

    # ---- construction ------------------------------------------------------------------------------------------

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, **config: Any) -> Self:
        """Serve a model that is already in memory."""
        from core.inference.engines.hf import HfEngine

        settings = cls._config(config)
        return cls(HfEngine(model, tokenizer, kv=settings.kv), tokenizer, settings)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        engine: str = "hf",
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        adapter: str | None = None,
        revision: str | None = None,
        **config: Any,
    ) -> Self:
        """Open a run folder, a model folder (full weights or an adapter), a hub id, or "embedded".

        Args:
            engine: "hf" loads the weights; "tiny" takes random ones; "replay" answers from the recording at `path`.
            config: fields of `config_cls`, laid over what was saved with the model.

        Raises:
            CheckpointError: no model there, or one that another app's pipeline saved.
            ConfigError: an unknown field, with the nearest one.
        """
        from core.inference.engines import engine_class

        if engine == "tiny":
            tiny = engine_class("tiny")()
            return cls(tiny, tiny.tokenizer, cls._config(config))
        if engine == "replay":
            return cls(engine_class("replay")(path), None, cls._config(config))
        if engine_class(engine) is not engine_class("hf"):
            raise ConfigError(
                f"engine '{engine}' is not opened from a folder",
                hint=f"construct it: {cls.__name__}(engine, tokenizer)",
            )
        from core.inference.load import load_for_serving

        model, tokenizer, folder = load_for_serving(
            str(path), device=device, dtype=dtype, quantization=quantization, adapter=adapter, revision=revision
        )
        card = cls._read_card(folder)
        pipeline = cls.from_model(model, tokenizer, **{**card.get("config", {}), **config})
        pipeline.source = {"path": folder}
        return pipeline

    @classmethod
    def _read_card(cls, folder: str) -> dict[str, Any]:
        card = read_card(folder)
        if cls.app and card.get("app") not in (None, "", "lm", cls.app):
            where = str(Path(folder) / CARD)
            raise CheckpointError(f"the model was saved by the app '{card['app']}', not '{cls.app}'", where=where)
        return card if card.get("app") == cls.app else {}

    @classmethod
    def _config(cls, values: Mapping[str, Any]) -> Any:
        return build(cls.config_cls, dict(values), Places(cls.__name__))

    # ---- hooks -------------------------------------------------------------------------------------------------

    def to_example(self, given: Any) -> Any:
        """An example from what a user passes: an example, or a dictionary of its fields."""
        if isinstance(given, self.example_cls):
            return given
        if isinstance(given, Mapping):
            return build(self.example_cls, dict(given), Places(self.example_cls.__name__))
        raise AppInputError(
            f"cannot use {type(given).__name__} as input",
            hint=f"give text, a dictionary or a {self.example_cls.__name__}",
        )

    def prepare(self, example: Any) -> Request:
        """The prompt of an example."""
        raise NotImplementedError(f"{type(self).__name__} has no prepare()")

    def finish(self, request: Request, output: Output) -> Result:
        """What an output means; by default its text, stripped."""
        return Result(output.text.strip())

    def request(self, segments: Sequence[Segment], **meta: Any) -> Request:
        """A request from segments: the same ids that training would make of them."""
        ids = encode_prompt(segments, self.tokenizer, self.config.mode) if self.tokenizer is not None else []
        return Request(ids, "".join(s.text for s in segments if not s.train), tuple(segments), meta=meta)

    # ---- verbs -------------------------------------------------------------------------------------------------

    def __call__(self, inputs: Any, **gen: Any) -> Any:
        """One result for one input, a list for a list. `gen`: sampling fields, and fields of a text input's example."""
        sampling, extra = self._split(gen)
        many = isinstance(inputs, (list, tuple))
        results = list(self._run(self._examples(inputs if many else [inputs], extra), sampling, 8192, 64, True))
        return results if many else results[0]

    def batch(
        self,
        iterable: Iterable[Any],
        *,
        max_tokens: int = 8192,
        max_size: int = 64,
        ordered: bool = True,
        window: int = 2048,
        **gen: Any,
    ) -> Iterator[Result]:
        """Results of a stream of inputs, lazily: `window` inputs at a time are sorted by length into batches."""
        sampling, extra = self._split(gen)
        iterator = iter(iterable)
        while chunk := list(itertools.islice(iterator, window)):
            yield from self._run(self._examples(chunk, extra), sampling, max_tokens, max_size, ordered)

    def predict(self, examples: Sequence[Any], **gen: Any) -> list[Any]:
        """What the app's evaluator scores for these examples; by default the texts of the results."""
        return [result.text for result in self.batch(examples, **gen)]

    def draw(self, examples: Sequence[Any], samples: int, **gen: Any) -> list[list[str]]:
        """`samples` texts for each of the examples, as pass@k wants them.

        Raises:
            ConfigError: several samples of a greedy model, which are all the same.
        """
        if samples < 1 or (samples > 1 and self._split(gen)[0].temperature <= 0):
            raise ConfigError(
                f"{samples} samples of each example at temperature 0", where="sampling.samples",
                hint="with samples of at least 2, temperature=0.85 top_p=0.95, for example",
            )  # fmt: skip
        texts = [result.text for result in self.batch(list(examples) * samples, **gen)]
        return [texts[i :: len(examples)] for i in range(len(examples))]

    def stream(self, given: Any, **gen: Any) -> Iterator[Event]:
        """Text events as they are generated, then a `done` event with the result."""
        sampling, extra = self._split(gen)
        (example,) = self._examples([given], extra)
        request = self.prepare(example)
        if request.meta.get("answer") is not None:
            result = Result(request.meta["answer"], self._what_happened(request, Output([], "")))
            if result.text:
                yield Event("text", result.text)
            yield Event("done", result.text, 0.0, 0, result)
            return
        for event in self.engine.stream(request, sampling):
            if event.kind == "done":
                result = self._finish(request, event.result, event.t_ms)
                yield Event("done", result.text, event.t_ms, event.tokens, result)
            else:
                yield event

    def score(self, inputs: Sequence[Any], targets: Sequence[str], **fields: Any) -> list[float]:
        """Mean log-probability of each target's tokens given its input, in nats; end of text not included.

        Ids are those that training makes of prompt and target. Raises `AppInputError` naming the first target that
        has no tokens, or the counts when they differ.
        """
        if len(inputs) != len(targets):
            raise AppInputError(f"{len(inputs)} inputs for {len(targets)} targets")
        pairs = []
        for index, (example, target) in enumerate(zip(self._examples(inputs, fields), targets)):
            request = self.prepare(example)
            pair = self._pair(request, self.target_text(target)) if target.strip() and request.segments else None
            if pair is None or not pair[1]:
                raise AppInputError(f"input {index} or its target is empty: there is nothing to score")
            pairs.append(pair)
        scores = [0.0] * len(pairs)
        for part in length_buckets([len(p) + len(t) for p, t in pairs], 8192, 64):
            for index, value in zip(part, self.engine.score([pairs[i] for i in part])):
                scores[index] = value
        return scores

    def _pair(self, request: Request, target: str) -> tuple[list[int], list[int]]:
        row = [*request.segments, Segment(target, "assistant", True)]
        encoded = encode(row, self.tokenizer, mode=self.config.mode, eos=False)
        assert encoded is not None
        size = len(encoded.input_ids) - encoded.trained
        return encoded.input_ids[:size], encoded.input_ids[size:]

    def target_text(self, target: str) -> str:
        """A target as it stands behind the prompt; apps add the separator of their template."""
        return target

    # ---- saving ------------------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Write model (full weights or adapter), tokenizer and card into `path`.

        The folder appears whole: everything is written beside it and moved. An adapter whose base has no place on
        disk carries it in base/. Raises `CheckpointError` when the folder holds something that is no model.
        """
        model = getattr(self.engine, "model", None)
        if model is None:
            raise CheckpointError("this pipeline's engine has no weights to save", where=type(self.engine).__name__)
        with whole_folder(path, CARD) as folder:
            self._write(model, folder)

    def _write(self, model: Any, path: Path) -> None:
        save_model(model, path)
        self.tokenizer.save_pretrained(path)
        config = {k: v for k, v in dataclasses.asdict(self.config).items() if v is not None}
        self._write_card(path, config, template=self.config.template or self.default_template)

    def close(self) -> None:
        """Give the engine's memory back."""
        self.engine.close()

    # ---- inside ------------------------------------------------------------------------------------------------

    def _split(self, gen: Mapping[str, Any]) -> tuple[SamplingParams, dict[str, Any]]:
        """Sampling overrides, and the rest, which belongs to the examples."""
        base = SamplingParams(**{f: getattr(self.config, f) for f in _SAMPLING if hasattr(self.config, f)})
        chosen = {name: value for name, value in gen.items() if name in _SAMPLING}
        return base.updated(chosen), {name: value for name, value in gen.items() if name not in _SAMPLING}

    def _examples(self, inputs: Iterable[Any], extra: Mapping[str, Any]) -> list[Any]:
        return [self.to_example(given, **extra) if extra else self.to_example(given) for given in inputs]

    def _run(
        self, examples: Sequence[Any], sampling: SamplingParams, max_tokens: int, max_size: int, ordered: bool
    ) -> Iterator[Result]:
        requests = [self.prepare(example) for example in examples]
        results: dict[int, Result] = {}
        for index, request in enumerate(requests):
            if request.meta.get("answer") is not None:
                results[index] = Result(request.meta["answer"], self._what_happened(request, Output([], "")))
        todo = [i for i in range(len(requests)) if i not in results]
        lengths = [len(requests[i].ids) + sampling.max_new_tokens for i in todo]
        if not ordered:
            yield from results.values()
        for part in length_buckets(lengths, max(max_tokens, 1), max_size):
            chosen = [requests[todo[i]] for i in part]
            start = time.perf_counter()
            outputs = self.engine.generate(chosen, sampling)
            elapsed = (time.perf_counter() - start) * 1e3
            for i, request, output in zip(part, chosen, outputs):
                result = self._finish(request, output, elapsed)
                if ordered:
                    results[todo[i]] = result
                else:
                    yield result
        if ordered:
            yield from (results[i] for i in range(len(requests)))

    def _finish(self, request: Request, output: Output, elapsed: float) -> Result:
        result = self.finish(request, output)
        return dataclasses.replace(
            result,
            meta={**self._what_happened(request, output), **result.meta},
            timings={"ms": elapsed, **result.timings},
        )

    @staticmethod
    def _what_happened(request: Request, output: Output) -> dict[str, Any]:
        shown = {k: v for k, v in request.meta.items() if k != "answer"}
        return {
            "prompt": request.text,
            "prompt_tokens": len(request.ids),
            "tokens": len(output.ids),
            "finish_reason": output.finish_reason,
            **shown,
        }
