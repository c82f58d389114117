"""`lm.pretrain`: documents, each with its end of text, joined and cut into blocks in which every token is learnt.

Before it trains it can balance languages (`apps.lm.mixing`) and say what loss smaller runs let expect
(`apps.lm.scaling`); while it trains it can go back where the loss spikes (`core.training.spikes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.config.limits import PRETRAIN
from core.config.registry import method
from core.config.schema import key
from core.data.row_stream import rows_of
from core.data.segments import Segment
from core.errors import ConfigError
from core.training.spike_level import SpikeConfig

if TYPE_CHECKING:
    from apps.lm.data import TextExample


@dataclass(frozen=True)
class PretrainConfig:
    """Options of `lm.pretrain`."""

    shares: dict[str, float] = key({}, "share of each language's tokens, e.g. {de: 0.5, en: 0.5}; empty keeps the data")
    alpha: float | None = key(None, "without shares: shares follow tokens to this power; below 1 lifts what is rare")
    apart: bool = key(False, "documents that share a block do not see each other")
    max_epochs: float = key(4.0, "a language is read at most so often to meet its share", above=0)
    spikes: SpikeConfig = key(SpikeConfig, "going back where the loss spikes")
    forecast: list[str] = key([], "finished runs of smaller models, from which this run's bits per byte are forecast")


@method("lm.pretrain", config=PretrainConfig, limits=PRETRAIN, streams=True)
def pretrain(ctx: Any) -> Any:
    """Next-token prediction on plain text."""
    from core.training.spikes import guarded
    from core.training.stage import Stage
    from core.training.trainer import SupervisedTrainer

    options = ctx.options
    documents = balanced(ctx) if options.shares or options.alpha is not None else ctx.train
    if options.forecast:
        announce_forecast(ctx, documents)
    trainer = guarded(SupervisedTrainer, options.spikes, ctx.run, "pretrain") if options.spikes.every else None
    encoder = apart if options.apart else None
    rows, held_out = rows_of(documents, row), rows_of(ctx.eval, row)
    return Stage(rows, held_out, layout="blocks", encoder=encoder, trainer=trainer)


def apart(rows: Any, tokenizer: Any, *, mode: str = "offsets", max_length: int = 512) -> tuple[Any, Any]:
    """Documents packed whole, each seeing only itself; one that is longer than a block is cut into pieces of it.

    Returns:
        the packed data set, whose batches carry positions that restart at every piece, and what was counted.
    """
    from core.data.dataset import EncodedDataset
    from core.data.encode import Encoded, EncodeStats, encode_stream

    stats, pieces = EncodeStats(), []
    for row in encode_stream(rows, tokenizer, mode=mode):  # type: ignore[arg-type]
        stats.add(row)
        ids = row.input_ids
        parts = (ids[start : start + max_length] for start in range(0, len(ids), max_length))
        pieces += [Encoded(part, list(part)) for part in parts if len(part) > 1]
    stats.check()
    return EncodedDataset(pieces, max_length), stats


def row(document: TextExample) -> list[Segment]:
    """A document as one segment."""
    return [Segment(document.text, "document", True)]


def balanced(ctx: Any) -> list[Any]:
    """The documents of the mixture that the options ask for; the run keeps a table of it."""
    from apps.lm.mixing import count_tokens, mix

    if not isinstance(ctx.train, Sequence):
        raise ConfigError(
            "shares of tokens need all documents",
            where="with.shares",
            hint="with data.streaming, set the weight of each source instead",
        )
    options = ctx.options
    made = mix(
        ctx.train,
        count_tokens(ctx.train, ctx.tokenizer),
        shares=options.shares,
        alpha=options.alpha,
        max_epochs=options.max_epochs,
        seed=ctx.recipe.seed,
    )
    _keep(ctx.run, "mixture.json", made.to_dict(), "mixture of languages:\n" + made.table())
    return made.documents


def announce_forecast(ctx: Any, documents: Any) -> None:
    """Say what smaller runs let expect of this one, and keep it in the run for comparison."""
    from apps.lm.mixing import count_tokens
    from apps.lm.scaling import forecast
    from core.costmodel.workload import shape_of

    shape, train = shape_of(ctx.recipe), ctx.recipe.train
    size = shape.parameters - shape.embedding_parameters - shape.head_parameters
    if train.max_steps and train.batch.unit == "tokens":
        tokens = float(train.max_steps * train.batch.size)
    elif isinstance(documents, Sequence):
        tokens = sum(count_tokens(documents, ctx.tokenizer)) * train.epochs
    else:
        raise ConfigError(
            "how much a stream will read is not known", where="train", hint="set max_steps, and a batch in tokens"
        )
    bits, law, points = forecast(ctx.options.forecast, size, tokens)
    lines = [f"  {p.name}: {p.parameters:,.0f} parameters, {p.tokens:,.0f} tokens, {p.loss:.4f}" for p in points]
    text = f"forecast: {bits:.4f} bits per byte at {size:,} parameters and {tokens:,.0f} tokens\n"
    text += "\n".join([*lines, f"  law: {law.describe()}, misfit at most {law.error:.2%}"])
    found = {
        "bits_per_byte": bits,
        "parameters": size,
        "tokens": tokens,
        "law": vars(law),
        "runs": [vars(p) for p in points],
    }
    _keep(ctx.run, "forecast.json", found, text)


def _keep(run: Any, name: str, values: Any, text: str) -> None:
    from core.config.files import write_json
    from core.distributed.launch import is_main
    from core.training.callbacks import say

    if run is not None and is_main():
        write_json(run.path / name, values)
        say(run, text)
