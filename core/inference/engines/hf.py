"""Generation and scoring with a transformers model on one device.

Requests are padded on the left with an explicit mask; positions follow the mask, so a prompt gives the same output
alone and in a batch. One lock guards the model, which makes a pipeline safe to share between threads; a stream takes it
step by step, so a slow reader blocks nobody. The mode of every module (training or not) and the random state of the
process are as before after every call. Defaults that came with the model's weights (a repetition penalty, say) do not
apply: only the request's own sampling decides.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from core.errors import AppInputError, BackendUnavailable
from core.inference.detokenize import Detokenizer
from core.inference.request import Event, Output, Request, SamplingParams
from core.inference.stopping import StopStrings, completing_tokens, find_stop, held_back, ids_until_stop, stop_window
from core.models.attention import without_planning


class HfEngine:
    """Wraps `model` and `tokenizer`; the device is the model's. `kv` other than "full" rounds the cache (`kv8`, `kv4`).

    Raises:
        ConfigError: a model whose layers a rounded cache cannot serve.
    """

    def __init__(self, model: Any, tokenizer: Any, kv: str = "full") -> None:
        self.model, self.tokenizer, self.kv = model, tokenizer, kv
        self._cache_for_generation()
        self._lock = threading.Lock()
        self._completing: dict[tuple[str, ...], frozenset[int] | None] = {}

    def capabilities(self) -> set[str]:
        return {"generate", "stream", "score", "beams", "logprobs"}

    @property
    def device(self) -> torch.device:
        return next(self._live().parameters()).device

    @property
    def context(self) -> int | None:
        """Positions that the model has, prompt and output together."""
        return getattr(self._live().config, "max_position_embeddings", None)

    def _cache_for_generation(self) -> Any:
        """An empty cache, or None for the one that the model makes itself."""
        if self.kv == "full":
            return None
        from core.quantization.kv import graft_cache

        return graft_cache(self.model, self.kv)

    def _live(self) -> Any:
        if self.model is None:
            raise BackendUnavailable("the engine is closed", hint="open the pipeline again with from_pretrained")
        return self.model

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        with self._lock:
            training = [module for module in self._live().modules() if module.training]
            self.model.eval()
            try:
                with torch.inference_mode(), self._autocast(), without_planning(self.device):
                    yield
            finally:
                for module in training:
                    module.training = True

    @contextlib.contextmanager
    def _random(self, sampling: SamplingParams) -> Iterator[None]:
        """The seed's random state, or a fresh one; the process's own is put back."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            if sampling.seed is None:
                torch.seed()
            else:
                torch.manual_seed(sampling.seed)
            yield

    def _autocast(self) -> Any:
        """fp32 weights on a GPU compute in bf16, as they do in training; on a CPU arithmetic stays exact."""
        if self.device.type == "cuda" and next(self.model.parameters()).dtype == torch.float32:
            return torch.autocast("cuda", torch.bfloat16)
        return contextlib.nullcontext()

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[Output]:
        """One output a request, as one batch; the caller chooses batches.

        Requests with other stop strings, or with less room in the model's context, are run apart, so that what one
        row gets never depends on its neighbours. Raises `AppInputError` for a prompt that fills the context.
        """
        groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for index, request in enumerate(requests):
            key = (_stops(request, sampling), self._room(request, sampling))
            groups.setdefault(key, []).append(index)
        outputs: dict[int, Output] = {}
        for (stops, room), indices in groups.items():
            made = self._generate([requests[i] for i in indices], sampling, stops, room)
            outputs.update(zip(indices, made))
        return [outputs[i] for i in range(len(requests))]

    def _room(self, request: Request, sampling: SamplingParams) -> int:
        if not request.ids:
            raise AppInputError("the prompt has no tokens", hint="give the model at least one token to go on from")
        context = self.context
        room = sampling.max_new_tokens if context is None else min(sampling.max_new_tokens, context - len(request.ids))
        if room <= 0:
            raise AppInputError(
                f"the prompt has {len(request.ids)} tokens and the model's context is {context}",
                hint="shorten the input",
            )
        return room

    def _generate(
        self, requests: Sequence[Request], sampling: SamplingParams, stops: tuple[str, ...], room: int
    ) -> list[Output]:
        ids, mask = self._pad([request.ids for request in requests])
        length = ids.shape[1]
        with self._serving(), self._random(sampling):
            generated = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=self._cache_for_generation(),
                generation_config=self._config(sampling, room),
                stopping_criteria=[self._stopping(stops, length)] if stops else None,
                logits_processor=self._forms([request.constraint for request in requests], length, room),
            )
            new = generated.sequences[:, length:]
            logprobs = _logprobs(generated.logits, new) if self._wants_logprobs(sampling) else None
        return [
            self._output(row, None if logprobs is None else logprobs[i], stops) for i, row in enumerate(new.tolist())
        ]

    @staticmethod
    def _forms(constraints: list[Any], length: int, room: int) -> list[Any] | None:
        """What keeps rows to their forms, where any has one."""
        if not any(constraints):
            return None
        from core.inference.constrained import ConstrainedLogits

        for constraint in constraints:
            if constraint is not None:
                constraint.check_budget(room)
        return [ConstrainedLogits(constraints, length, room)]

    def _stopping(self, stops: tuple[str, ...], length: int) -> StopStrings:
        if stops not in self._completing:
            self._completing[stops] = completing_tokens(stops, self.tokenizer)
        return StopStrings(stops, length, self.tokenizer, self._completing[stops])

    @staticmethod
    def _wants_logprobs(sampling: SamplingParams) -> bool:
        return sampling.logprobs and sampling.beams == 1

    def _config(self, sampling: SamplingParams, room: int) -> Any:
        from transformers import GenerationConfig

        sampled = sampling.temperature > 0
        keywords: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "typical_p": 1.0}
        keywords.update(temperature=1.0, top_p=1.0, top_k=50)
        if sampled:
            keywords.update(temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k)
        if sampling.beams > 1:
            keywords.update(length_penalty=sampling.length_penalty)
        return GenerationConfig(
            max_new_tokens=room,
            do_sample=sampled,
            num_beams=sampling.beams,
            return_dict_in_generate=True,
            output_logits=self._wants_logprobs(sampling),
            use_cache=True,
            pad_token_id=self._pad_id(),
            eos_token_id=sorted(self._ends()),
            **keywords,
        )

    def _ends(self) -> set[int]:
        """Every id that ends an output: the tokenizer's, and those that the model's own defaults name."""
        own = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        own = own if isinstance(own, list) else [own]
        return {int(i) for i in [self.tokenizer.eos_token_id, *own] if i is not None}

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _output(self, ids: list[int], logprobs: list[float] | None, stops: Sequence[str]) -> Output:
        ends, reason = self._ends(), "length"
        end = next((i for i, token in enumerate(ids) if token in ends), None)
        if end is not None:
            ids, reason = ids[:end], "stop"
        text = self._decode(ids)
        at = find_stop(text, stops)
        if at is not None:
            ids, text, reason = ids_until_stop(ids, stops, self._decode), text[:at], "stop"
        return Output(ids, text, None if logprobs is None else logprobs[: len(ids)], reason)

    def stream(self, request: Request, sampling: SamplingParams) -> Iterator[Event]:
        """Text events, then one `done` event; joined they are what `generate` gives for the same request.

        Tokens are decoded one by one over a key-value cache. A beam search knows its text only at the end, and then
        gives it as one event.
        """
        start = time.perf_counter()

        def event(kind: str, text: str, tokens: int, output: Output | None = None) -> Event:
            return Event(kind, text, (time.perf_counter() - start) * 1e3, tokens, output)

        if sampling.beams > 1:
            (output,) = self.generate([request], sampling)
            if output.text:
                yield event("text", output.text, len(output.ids))
            yield event("done", output.text, len(output.ids), output)
            return
        detokenizer, stops = Detokenizer(self.tokenizer), _stops(request, sampling)
        ids: list[int] = []
        logprobs: list[float] = []
        text, given, reason = "", 0, "length"
        for token, logprob in self._tokens(request, sampling):
            if token in self._ends():
                reason = "stop"
                break
            ids.append(token)
            logprobs.append(logprob)
            if stops and find_stop(self._decode(ids[-stop_window(stops) :]), stops) is not None:
                reason = "stop"
                break
            text += detokenizer.add([token])
            final = len(text) - held_back(text, stops)
            if final > given:
                yield event("text", text[given:final], len(ids))
                given = final
        text = self._decode(ids)
        text = text[: find_stop(text, stops)]
        if len(text) > given:
            yield event("text", text[given:], len(ids))
        yield event("done", text, len(ids), Output(ids, text, logprobs if sampling.logprobs else None, reason))

    def _tokens(self, request: Request, sampling: SamplingParams) -> Iterator[tuple[int, float]]:
        """New tokens with their log-probabilities, one model step each."""
        generator = torch.Generator(self.device)
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed)
        warpers, cache = _warpers(sampling), self._cache_for_generation()
        current = torch.tensor([request.ids], device=self.device)
        room, written = self._room(request, sampling), current
        forms = self._forms([request.constraint], len(request.ids), room)
        for _ in range(room):
            with self._serving():
                out = self.model(input_ids=current, past_key_values=cache, use_cache=True)
                cache, logits = out.past_key_values, out.logits[:, -1].float()
                if forms is not None:
                    logits = forms[0](written, logits)
                if warpers is None:
                    current = logits.argmax(-1, keepdim=True)
                else:
                    scores = logits
                    for warper in warpers:
                        scores = warper(current, scores)
                    current = torch.multinomial(scores.softmax(-1), 1, generator=generator)
                token = int(current)
                logprob = float(logits.log_softmax(-1)[0, token]) if sampling.logprobs else 0.0
            written = torch.cat([written, current], dim=1) if forms is not None else written
            yield token, logprob

    def score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Mean log-probability of each target given its prompt; one batch. Padding is on the right.

        A target that opens the row has nothing before its first token, which then does not count.
        """
        if not pairs:
            return []
        rows = [[*prompt, *target] for prompt, target in pairs]
        length, pad = max(map(len, rows)), self._pad_id()
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=self.device)
        scores = []
        with self._serving():
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for row, (prompt, target) in enumerate(pairs):
                first, last = max(len(prompt), 1), len(prompt) + len(target)
                if first >= last:
                    raise AppInputError(f"target {row} of the batch has no token to score")
                steps = logits[row, first - 1 : last - 1].float().log_softmax(-1)
                scores.append(float(steps.gather(-1, ids[row, first:last, None]).mean()))
        return scores

    def _pad(self, rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        length, pad = max(map(len, rows)), self._pad_id()
        ids = torch.tensor([[pad] * (length - len(r)) + r for r in rows], device=self.device)
        mask = torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows], device=self.device)
        return ids, mask

    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def close(self) -> None:
        """Give the model's memory back; the engine is unusable afterwards."""
        self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _stops(request: Request, sampling: SamplingParams) -> tuple[str, ...]:
    """Stop strings of a request; a text of a given form ends itself, and may hold one inside."""
    if request.constraint is not None:
        return ()
    return tuple(dict.fromkeys(stop for stop in (*sampling.stop, *request.stop) if stop))


def _logprobs(logits: Sequence[torch.Tensor], new: torch.Tensor) -> list[list[float]]:
    """Log-probabilities (B, T) of the chosen tokens; one step at a time, so that no (B, T, V) copy is made."""
    steps = [step.float().log_softmax(-1).gather(-1, new[:, t, None]) for t, step in enumerate(logits)]
    return torch.cat(steps, dim=1).tolist()


def _warpers(sampling: SamplingParams) -> list[Any] | None:
    """The steps from logits to the distribution that `generate` draws from, in its order; None for greedy."""
    if sampling.temperature <= 0:
        return None
    from transformers import generation

    steps: list[Any] = [generation.TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k:
        steps.append(generation.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(generation.TopPLogitsWarper(sampling.top_p))
    return steps
