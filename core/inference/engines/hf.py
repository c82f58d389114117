"""Generation and scoring with a transformers model on one device.

Requests are padded on the left with an explicit mask; positions follow the mask, so a prompt gives the same output
alone and in a batch. One lock guards the model, which makes a pipeline safe to share between threads. The mode of the
model (training or not) and the random state of the process are as before after every call.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from core.inference.detokenize import Detokenizer
from core.inference.request import Event, Output, Request, SamplingParams


class HfEngine:
    """Wraps `model` and `tokenizer`; the device is the model's."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._lock = threading.Lock()

    def capabilities(self) -> set[str]:
        return {"generate", "stream", "score", "beams", "logprobs"}

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def context(self) -> int | None:
        """Positions that the model has, prompt and output together."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @contextlib.contextmanager
    def _serving(self, seed: int | None = None) -> Iterator[None]:
        devices = [self.device] if self.device.type == "cuda" else []
        with self._lock:
            training = self.model.training
            self.model.eval()
            try:
                with torch.random.fork_rng(devices=devices), torch.inference_mode(), self._autocast():
                    if seed is not None:
                        torch.manual_seed(seed)
                    yield
            finally:
                self.model.train(training)

    def _autocast(self) -> Any:
        """fp32 weights on a GPU compute in bf16, as they do in training; on a CPU arithmetic stays exact."""
        if self.device.type == "cuda" and next(self.model.parameters()).dtype == torch.float32:
            return torch.autocast("cuda", torch.bfloat16)
        return contextlib.nullcontext()

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> list[Output]:
        """One output a request, as one batch; the caller chooses batches."""
        if not requests:
            return []
        ids, mask = self._pad([r.ids for r in requests])
        stop = tuple(dict.fromkeys([*sampling.stop, *(s for r in requests for s in r.stop)]))
        with self._serving(sampling.seed):
            generated = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=self._config(sampling, stop),
                tokenizer=self.tokenizer if stop else None,
            )
            logprobs = self._logprobs(generated) if sampling.beams == 1 else None
        new = generated.sequences[:, ids.shape[1] :].tolist()
        return [self._output(row, None if logprobs is None else logprobs[i], stop) for i, row in enumerate(new)]

    def _config(self, sampling: SamplingParams, stop: Sequence[str]) -> Any:
        from transformers import GenerationConfig

        sampled = sampling.temperature > 0
        keywords: dict[str, Any] = {"do_sample": sampled, "num_beams": sampling.beams}
        if sampled:
            keywords.update(temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k)
        if sampling.beams > 1:
            keywords.update(length_penalty=sampling.length_penalty)
        if stop:
            keywords.update(stop_strings=list(stop))
        keywords.update(return_dict_in_generate=True, output_logits=sampling.beams == 1, use_cache=True)
        keywords.update(pad_token_id=self._pad_id(), eos_token_id=self.tokenizer.eos_token_id)
        return GenerationConfig(max_new_tokens=sampling.max_new_tokens, **keywords)

    def _logprobs(self, generated: Any) -> list[list[float]]:
        steps = torch.stack([step.float().log_softmax(-1) for step in generated.logits], dim=1)
        new = generated.sequences[:, -steps.shape[1] :]
        return steps.gather(-1, new[..., None]).squeeze(-1).tolist()

    def _output(self, ids: list[int], logprobs: list[float] | None, stop: Sequence[str]) -> Output:
        eos = self.tokenizer.eos_token_id
        reason = "length"
        if eos in ids:
            ids, reason = ids[: ids.index(eos)], "stop"
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for end in stop:
            if end in text:
                text, reason = text.partition(end)[0], "stop"
        kept = None if logprobs is None else logprobs[: len(ids) + (reason == "stop")]
        return Output(ids, text, kept, reason)

    def stream(self, request: Request, sampling: SamplingParams) -> Iterator[Event]:
        """Greedy or sampled decoding token by token over a key-value cache; text events, then one `done` event."""
        start = time.perf_counter()
        detokenizer, ids, text, reason = Detokenizer(self.tokenizer), [], "", "length"
        stop = (*sampling.stop, *request.stop)
        generator = torch.Generator().manual_seed(sampling.seed or 0)
        with self._serving():
            current = torch.tensor([request.ids], device=self.device)
            cache = None
            for _ in range(sampling.max_new_tokens):
                out = self.model(input_ids=current, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                token = _choose(out.logits[0, -1].float().cpu(), sampling, generator)
                if token == self.tokenizer.eos_token_id:
                    reason = "stop"
                    break
                ids.append(token)
                piece = detokenizer.add([token])
                text += piece
                ended = next((s for s in stop if s in text), None)
                if ended is not None:
                    piece = piece[: max(0, len(piece) - (len(text) - text.index(ended)))]
                    text, reason = text[: text.index(ended)], "stop"
                if piece:
                    yield Event("text", piece, (time.perf_counter() - start) * 1e3, len(ids))
                if ended is not None:
                    break
                current = torch.tensor([[token]], device=self.device)
        rest = detokenizer.flush() if reason != "stop" or not stop else ""
        if rest and not any(s in text + rest for s in stop):
            text += rest
            yield Event("text", rest, (time.perf_counter() - start) * 1e3, len(ids))
        done = Output(ids, text, None, reason)
        yield Event("done", text, (time.perf_counter() - start) * 1e3, len(ids), done)

    def score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Mean log-probability of each target given its prompt; one batch. Padding is on the right."""
        if not pairs:
            return []
        rows = [[*prompt, *target] for prompt, target in pairs]
        length = max(map(len, rows))
        pad = self._pad_id()
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=self.device)
        with self._serving():
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
            taken = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1).cpu()
        scores = []
        for row, (prompt, target) in enumerate(pairs):
            first = max(len(prompt) - 1, 0)
            part = taken[row, first : len(prompt) + len(target) - 1]
            scores.append(float(part.mean()) if len(part) else 0.0)
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


def _choose(logits: torch.Tensor, sampling: SamplingParams, generator: torch.Generator) -> int:
    """The next token: arg max, or a draw from the tempered, truncated distribution."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if sampling.top_k:
        kept = logits.topk(min(sampling.top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < kept, float("-inf"))
    if sampling.top_p < 1:
        ordered, index = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits[index[before >= sampling.top_p]] = float("-inf")
    return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
