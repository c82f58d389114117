"""An engine that keeps the keys and values of its last request: a conversation that grows is not computed anew.

The longest common prefix with the ids of the request before is kept in the cache, the rest is cut off, and only new ids
go through the model. Steps of an agent, siblings in a search tree and code that continues after its result share most
of their prompts that way. Requests that come together are run one after the other; a beam search, and a model whose
cache cannot be cut (a sliding window, a recurrent state), are computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.inference.engines.hf import HfEngine
from core.inference.request import Output, Request, SamplingParams


class PrefixEngine(HfEngine):
    """An `HfEngine` for one conversation at a time.

    Attributes:
        processed: ids that went through the model. reused: ids that were found in the cache instead.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self.processed = self.reused = 0
        self._cache: Any = None
        self._ids: list[int] = []

    def _generate(
        self, requests: Sequence[Request], sampling: SamplingParams, stops: tuple[str, ...], room: int
    ) -> list[Output]:
        if sampling.beams > 1:
            return super()._generate(requests, sampling, stops, room)
        return [self._continue(request, sampling, stops, room) for request in requests]

    def _continue(self, request: Request, sampling: SamplingParams, stops: tuple[str, ...], room: int) -> Output:
        import torch

        with self._serving(), self._random(sampling):
            cache, kept = self._prefix(request.ids)
            ids = torch.tensor([request.ids], device=self.device)
            generated = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                generation_config=self._config(sampling, room),
                stopping_criteria=[self._stopping(stops, ids.shape[1])] if stops else None,
                logits_processor=self._forms([request.constraint], ids.shape[1], room),
            )
            whole = generated.sequences[0].tolist()
            self._cache, self._ids = cache, whole[: cache.get_seq_length()]
        self.reused += kept
        self.processed += len(self._ids) - kept
        new = whole[len(request.ids) :]
        logprobs = None
        if self._wants_logprobs(sampling):
            from core.inference.engines.hf import _logprobs

            (logprobs,) = _logprobs(generated.logits, generated.sequences[:, len(request.ids) :])
        return self._output(new, logprobs, stops)

    def _prefix(self, ids: list[int]) -> tuple[Any, int]:
        """A cache that holds the start of `ids`, never all of them, and how many."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        common = next((n for n, pair in enumerate(zip(ids, self._ids)) if pair[0] != pair[1]), len(self._ids))
        common = min(common, len(ids) - 1)
        cache, self._cache = self._cache, None
        if cache is None or not common or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return DynamicCache(config=self.model.config), 0
        if len(self._ids) > common:
            cache.crop(common - len(self._ids))
        return cache, common

    def close(self) -> None:
        self._cache, self._ids = None, []
        super().close()
