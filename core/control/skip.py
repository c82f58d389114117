"""Choose which feed-forward parts a model leaves out while it decodes (Jaiswal et al. 2024, FFN-SkipLLM).

A pass over text records, for every token and block, the cosine of the residual stream before and after the feed-forward
part. The threshold is the one at which that many parts would have been left out on this text.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch

from core.config.registry import BuildContext
from core.control.options import SkipOptions
from core.errors import BudgetError, ConfigError
from core.models.blocks.skip import skip_state
from core.models.surgery import apply, forget, ops_of
from core.models.topology import ModelTopology

NEVER = 2.0
TEXTS, LENGTH = 32, 128


def calibrate_skip(model: Any, batches: Iterable[dict[str, Any]], options: SkipOptions) -> Any:
    """Let `model` skip, in place, with the threshold that gives `options.target_ratio` on `batches`.

    Args:
        batches: {"input_ids": (B, T), maybe "attention_mask"}; not used when a threshold is given.

    Raises:
        ConfigError: neither a ratio nor a threshold, or both.
        BudgetError: a ratio that these blocks cannot reach, with the largest that they can.
        Whatever fails, the model is then as before.
    """
    if (options.target_ratio is None) == (options.threshold is None):
        raise ConfigError("give a target_ratio or a threshold, and not both", where="skip_ffn")
    count = len(ModelTopology.of(model).stack)
    first, last = region(count, options)
    most = min(last - first - 1, options.max_skip or count) / count
    if options.target_ratio is not None and options.target_ratio > most:
        raise BudgetError(
            f"blocks {first} to {last - 1} of {count} can leave out {most:.3f} of the parts at most",
            best_achievable=most,
            where="skip_ffn.target_ratio",
            hint=f"at most {most:.3f}, or a wider region",
        )
    batches = list(batches) if options.target_ratio is not None else []
    if options.target_ratio is not None and not batches:
        raise ConfigError("there is no text to calibrate on", where="skip_ffn", hint="set a threshold instead")
    threshold = NEVER if options.threshold is None else options.threshold
    apply(
        model, "skip_ffn", threshold=threshold, cold_start=first, cold_end=last, warmup=options.warmup,
        max_skip=options.max_skip,
    )  # fmt: skip
    if options.target_ratio is not None:
        try:
            cosines = _record(model, batches)
        except Exception:
            _undo(model)
            raise
        threshold = threshold_for(cosines[:, first:last], options.target_ratio * count, options.max_skip)
        skip_state(model).threshold = model.config.graft["ops"][-1]["threshold"] = threshold
    return model


def _undo(model: Any) -> None:
    """Every block as it was before the last op."""
    stack = ModelTopology.of(model).stack
    for position, block in enumerate(stack):
        stack[position] = block.block
    forget(model, ops_of(model)[-1:])


def region(count: int, options: SkipOptions) -> tuple[int, int]:
    """First block that may skip and the one after the last; by default without the outer eighths, from 4 blocks on."""
    edge = max(1, count // 8) if count >= 4 else 0
    first = edge if options.cold_start is None else options.cold_start
    last = count - edge if options.cold_end is None else options.cold_end
    if not 0 <= first < last <= count:
        raise ConfigError(
            f"blocks {first} to {last} of {count}", where="skip_ffn", hint="0 ≤ cold_start < cold_end ≤ blocks"
        )
    return first, last


def threshold_for(cosines: torch.Tensor, wanted: float, max_skip: int | None = None) -> float:
    """The threshold at which a token leaves out `wanted` parts on average.

    Args:
        cosines: (tokens, blocks that may skip). A token skips behind its first block that reaches the threshold.
    """
    limit = cosines.shape[1] if max_skip is None else max_skip
    low, high = -1.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if skipped(cosines, middle, limit) >= wanted else (low, middle)
    return low


def skipped(cosines: torch.Tensor, threshold: float, limit: int) -> float:
    """Parts that a token leaves out on average at a threshold."""
    reached = cosines >= threshold
    behind = cosines.shape[1] - 1 - reached.float().argmax(1)
    return float(torch.where(reached.any(1), behind, torch.zeros_like(behind)).clamp(max=limit).float().mean())


@torch.no_grad()
def _record(model: Any, batches: Iterable[dict[str, Any]]) -> torch.Tensor:
    """(tokens, blocks) cosines over all tokens that are not padding."""
    state, found, training = skip_state(model), [], model.training
    model.eval()
    try:
        for batch in batches:
            state.probe = [[] for _ in ModelTopology.of(model).stack]
            model(**batch, use_cache=False)
            values = torch.stack([torch.cat(each) for each in state.probe], -1)
            mask = batch.get("attention_mask")
            found.append(values.flatten(0, 1) if mask is None else values[mask.bool()])
    finally:
        state.probe = None
        model.train(training)
    return torch.cat(found).cpu()


def batches_of(texts: Iterable[str], tokenizer: Any, device: Any) -> Iterable[dict[str, Any]]:
    """A few texts, one a batch, cut at `LENGTH` tokens."""
    for text in islice(texts, TEXTS):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:LENGTH]
        if ids:
            yield {"input_ids": torch.tensor([ids], device=device)}


def build(model: Any, options: SkipOptions, context: BuildContext) -> Any:
    """`calibrate_skip` as an edit of a recipe, on its training text."""
    return calibrate_skip(model, batches_of(context.texts, context.tokenizer, model.device), options)
