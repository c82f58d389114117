"""Run a model block by block on calibration data and collect what passes through its linear maps.

Only one block's inputs are held at a time: tokens × hidden values, and never the activations of the whole model. A
caller walks `blocks()`, collects statistics of the maps it names, edits the block if it likes, and the walk goes on
with the outputs of the block as it was (the "full" stream), as it has become (the "edited" stream), or both. Linear
maps that get the same tensor share its statistics. This module knows nothing of why they are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from core.errors import DataError
from core.models.topology import BlockRef, ModelTopology

STATISTICS = ("absmean", "absmax", "hessian", "sample")
SAMPLE = 512


@dataclass
class InputStats:
    """Statistics of one linear map's inputs, over all calibration tokens.

    Args:
        tokens: how many were seen. absmean, absmax: (K,) fp32. hessian: Σ x xᵀ fp32 (K, K).
        sample: inputs of tokens that lie evenly in the data, (at most SAMPLE, K).
    """

    tokens: int = 0
    absmean: Any = None
    absmax: Any = None
    hessian: Any = None
    sample: Any = None
    _parts: list[Any] = field(default_factory=list, repr=False)

    def add(self, x: torch.Tensor, wanted: Sequence[str], share: int) -> None:
        """Count the inputs x (…, K) in."""
        rows = x.detach().reshape(-1, x.shape[-1])
        values = rows.float()
        self.tokens += rows.shape[0]
        if "absmean" in wanted:
            total = values.abs().sum(0)
            self.absmean = total if self.absmean is None else self.absmean + total
        if "absmax" in wanted:
            peak = values.abs().amax(0)
            self.absmax = peak if self.absmax is None else torch.maximum(self.absmax, peak)
        if "hessian" in wanted:
            product = values.t() @ values
            self.hessian = product if self.hessian is None else self.hessian.add_(product)
        if "sample" in wanted:
            step = max(1, rows.shape[0] // share)
            self._parts.append(rows[::step][:share].clone())

    def finish(self, name: str) -> InputStats:
        """Turn sums into means. Raises `DataError` for a map that was never reached or saw what is not finite."""
        if not self.tokens:
            raise DataError(
                f"no calibration token reached '{name}'", hint="give more data, or leave the layer out with skip"
            )
        if self.absmean is not None:
            self.absmean = self.absmean / self.tokens
        if self._parts:
            self.sample, self._parts = torch.cat(self._parts), []
        for value in (self.absmean, self.absmax, self.hessian):
            if value is not None and not bool(torch.isfinite(value).all()):
                raise DataError(f"the inputs of '{name}' are not finite on the calibration data")
        return self


@dataclass
class BlockRun:
    """One block, with its inputs of every batch.

    Args:
        ref: the block's parts. name: of its module in the model. inputs: hidden states (B, T, D) of the full stream.
        edited: those that came out of the edited blocks before; the same list where one stream is run.
    """

    index: int
    ref: BlockRef
    name: str
    inputs: list[torch.Tensor]
    edited: list[torch.Tensor]
    arguments: list[tuple[tuple, dict[str, Any]]]

    def forward(self, hidden: torch.Tensor, batch: int) -> torch.Tensor:
        """The block's output (B, T, D) on hidden states, with the other arguments of that batch."""
        positional, named = self.arguments[batch]
        result = self.ref.module(hidden, *positional, **named)
        return result[0] if isinstance(result, tuple) else result

    def outputs(self, stream: str = "full") -> list[torch.Tensor]:
        """The block's outputs on every batch of a stream."""
        inputs = self.inputs if stream == "full" else self.edited
        return [self.forward(hidden, batch) for batch, hidden in enumerate(inputs)]

    def linears(self) -> dict[str, Any]:
        """Full name → every linear map inside the block, expert and fused ones too."""
        from core.models.linear import is_linear_like

        return {f"{self.name}.{inner}": part for inner, part in self.ref.module.named_modules() if is_linear_like(part)}

    def collect(
        self, wanted: Iterable[str], names: Iterable[str] | None = None, stream: str = "full"
    ) -> dict[str, InputStats]:
        """Statistics of the inputs of the named linear maps (default: all), one pass over the stream.

        Args:
            wanted: of "absmean", "absmax", "hessian", "sample".

        Raises:
            DataError: a map that no token reached, or inputs that are not finite.
        """
        wanted = tuple(wanted)
        assert set(wanted) <= set(STATISTICS), wanted
        chosen = {n: m for n, m in self.linears().items() if names is None or n in set(names)}
        inputs = self.inputs if stream == "full" else self.edited
        share = max(1, SAMPLE // len(inputs))
        stats = {name: InputStats() for name in chosen}
        shared: dict[int, str] = {}
        alias: dict[str, str] = {}

        def watch(name: str) -> Callable[..., None]:
            def hook(module: Any, args: tuple) -> None:
                first = shared.setdefault(id(args[0]), name)
                if alias.setdefault(name, first) != name and first != name:
                    return
                alias[name] = name
                stats[name].add(args[0], wanted, share)
                kept.append(args[0])

            return hook

        handles = [module.register_forward_pre_hook(watch(name)) for name, module in chosen.items()]
        try:
            with torch.no_grad():
                for batch, hidden in enumerate(inputs):
                    shared.clear()
                    kept: list[torch.Tensor] = []
                    self.forward(hidden, batch)
        finally:
            for handle in handles:
                handle.remove()
        finished: dict[str, InputStats] = {}
        for name in chosen:
            owner = alias.get(name, name)
            finished[name] = finished[owner] if owner in finished else stats[owner].finish(name)
            finished[owner] = finished[name]
        return finished


class BlockCalibration:
    """The walk over a model's blocks.

    Args:
        batches: token ids (B, T) each. streams: "full", "edited" or "both".
    """

    def __init__(self, model: Any, batches: Sequence[torch.Tensor], streams: str = "full") -> None:
        if not batches or not any(batch.numel() for batch in batches):
            raise DataError("the calibration data is empty", hint="give at least one batch of token ids (B, T)")
        assert streams in ("full", "edited", "both")
        self.model, self.streams = model, streams
        self.topology = ModelTopology.of(model)
        self.device = next(model.parameters()).device
        self.first, self.arguments = self._enter([batch.to(self.device) for batch in batches])

    def _enter(self, batches: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[list[tuple[tuple, dict]]]]:
        """Inputs of the first block, and the other arguments of every block, for each batch."""
        blocks = [ref.module for ref in self.topology.blocks]
        first: list[torch.Tensor] = []
        arguments: list[list[tuple[tuple, dict]]] = [[] for _ in blocks]

        def watch(index: int) -> Callable[..., None]:
            def hook(module: Any, args: tuple, named: dict) -> None:
                named = dict(named)
                hidden = args[0] if args else named.pop("hidden_states")
                if index == 0:
                    first.append(hidden.detach())
                named |= {"use_cache": False} if "use_cache" in named else {}
                arguments[index].append((args[1:], {k: v for k, v in named.items() if k != "past_key_values"}))

            return hook

        handles = [block.register_forward_pre_hook(watch(i), with_kwargs=True) for i, block in enumerate(blocks)]
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                for batch in batches:
                    self.model(input_ids=batch, use_cache=False)
        finally:
            self.model.train(training)
            for handle in handles:
                handle.remove()
        if len(first) != len(batches):
            raise DataError("the calibration data did not reach the first block once for each batch")
        return first, arguments

    def blocks(self) -> Iterator[BlockRun]:
        """Each block in turn. When the caller comes back for the next, the outputs of this one become its inputs."""
        full = self.first
        edited = full if self.streams != "both" else list(full)
        training = self.model.training
        self.model.eval()
        try:
            for index, ref in enumerate(self.topology.blocks):
                run = BlockRun(index, ref, self.topology.name_of(ref.module), full, edited, self.arguments[index])
                with torch.no_grad():
                    ahead = run.outputs("full") if self.streams != "edited" else None
                yield run
                with torch.no_grad():
                    after = run.outputs("edited") if self.streams != "full" else None
                full = ahead or after or []
                edited = after or ahead or []
        finally:
            self.model.train(training)


def token_batches(
    tokenizer: Any, texts: Iterable[str], length: int = 512, count: int = 128, size: int = 8
) -> list[torch.Tensor]:
    """Text packed into rows of `length` tokens, at most `count` rows, as batches of `size` rows.

    Texts are joined by the end of text; a rest shorter than a row is used only when there is no whole row.
    """
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= count * length:
            break
    rows = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)][:count]
    if not rows and ids:
        rows = [ids]
    if not rows:
        raise DataError("the calibration text is empty", hint="give text that the model will be used on")
    table = torch.tensor(rows, dtype=torch.long)
    return list(table.split(size))
