"""The data of a stage: its method's rows encoded, in memory or as a stream, and the sizes of a step.

It knows recipes and tokenizers, and nothing of models. A stream is measured on its first window; what it holds beyond
that is read while training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from core.config.load import ResolvedStage
from core.config.registry import METHODS, App
from core.config.schema import DataConfig, Recipe
from core.costmodel.plan import CPU_TOKENS
from core.data import dataset as datasets
from core.data.dataset import EncodedDataset, EvenShares, IterableEncodedDataset, block_dataset
from core.data.encode import EncodeStats, Mode, encode, encode_rows, encode_stream
from core.distributed.launch import rank, world_size
from core.errors import ConfigError
from core.training.ramp import steps_to_read
from core.training.stage import Stage, StageContext

GPU_TOKENS, LOGIT_BYTES = 32768, 4e9


@dataclass
class Prepared:
    """A stage's tensors-to-be.

    Args:
        dataset: all rows in memory, or the first window of a stream. stream: the stream, None without one.
    """

    stage: Stage
    dataset: EncodedDataset
    eval_dataset: EncodedDataset | None
    stats: EncodeStats
    stream: IterableEncodedDataset | None = None

    def summary(self) -> dict[str, Any]:
        """Figures for the plan."""
        s = self.stats
        return {
            "rows": s.rows, "dropped": s.dropped, "first_dropped": s.worst,
            "cut": s.cut_rows, "cut_tokens": s.cut_tokens, "tokens": s.tokens, "trained_tokens": s.trained,
            "sequences": len(self.dataset), "padding_share": round(self.dataset.padding_share, 4),
            **({"streaming": f"figures are those of the first {s.rows} rows"} if self.stream else {}),
        }  # fmt: skip

    def for_training(self, micro: int) -> Any:
        """What the Trainer reads: the stream, or the rows filled up to equal shares of all processes."""
        if self.stream is not None or world_size() == 1 or not isinstance(self.dataset, EncodedDataset):
            return self.stream or self.dataset
        return EvenShares(self.dataset, micro * world_size())


def prepare_data(app: App, stage: ResolvedStage, tokenizer: Any, examples: Any, held_out: Any, run: Any) -> Prepared:
    """Rows of the stage's method, encoded and packed. Raises `DataError` when nothing would be learnt."""
    data = stage.recipe.data
    folder = run.stage_dir(stage.index, stage.name) if run else None
    context = StageContext(stage.recipe, stage.options, tokenizer, examples, held_out, app, run, folder)
    made = METHODS.get(stage.method).build(context)
    eval_rows = list(made.eval_rows)[: stage.recipe.eval.limit]
    if made.encoder is not None:
        return _by_own_encoder(made, eval_rows, tokenizer, data)
    if data.streaming:
        return _stream(made, stage, tokenizer, context, _held_out(made, eval_rows, tokenizer, data))
    held = _held_out(made, eval_rows, tokenizer, data)
    if made.layout == "blocks":
        dataset, stats = _blocks(made.rows, tokenizer, made.mode, data.max_length)
        return Prepared(made, dataset, held, stats)
    rows, stats = encode_rows(made.rows, tokenizer, mode=made.mode, max_length=data.max_length)
    return Prepared(made, EncodedDataset(rows, data.max_length if data.packing else None), held, stats)


def _by_own_encoder(made: Stage, eval_rows: list, tokenizer: Any, data: DataConfig) -> Prepared:
    assert made.encoder is not None
    if data.streaming:
        raise ConfigError("this method's rows are not read as a stream", where="data.streaming", hint="set it to false")
    options = {"mode": made.mode, "max_length": data.max_length}
    dataset, stats = made.encoder(made.rows, tokenizer, **options)
    held = made.encoder(eval_rows, tokenizer, **options)[0] if eval_rows else None
    return Prepared(made, dataset, held, stats)


def _held_out(made: Stage, rows: list, tokenizer: Any, data: DataConfig) -> EncodedDataset | None:
    if not rows:
        return None
    if made.layout == "blocks":
        return _blocks(rows, tokenizer, made.mode, data.max_length)[0]
    encoded = [encode(row, tokenizer, mode=made.mode, max_length=data.max_length) for row in rows]
    kept = [row for row in encoded if row is not None and row.trained]
    return EncodedDataset(kept, data.max_length if data.packing else None) if kept else None


def _stream(
    made: Stage, stage: ResolvedStage, tokenizer: Any, context: StageContext, held: EncodedDataset | None
) -> Prepared:
    """The endless stream of a stage, and its first window in memory."""
    data = stage.recipe.data

    def again() -> Iterable[Any]:
        if iter(made.rows) is not made.rows:
            return made.rows
        return METHODS.get(stage.method).build(context).rows

    def stream(share: tuple[int, int], rows: Callable[[], Iterable[Any]], endless: bool) -> IterableEncodedDataset:
        return IterableEncodedDataset(
            rows,
            tokenizer,
            max_length=data.max_length,
            mode=made.mode,
            packing=data.packing,
            blocks=made.layout == "blocks",
            endless=endless,
            seed=stage.recipe.seed,
            share=share,
        )

    first = list(islice(again(), datasets.WINDOW))
    window = stream((0, 1), lambda: first, False)
    items = list(window)
    window.stats.check()
    packed = data.packing and made.layout != "blocks"
    rows = [row for item in items for row in (item if isinstance(item, list) else [item])]
    sample = EncodedDataset(rows, data.max_length if packed else None)
    return Prepared(made, sample, held, window.stats, stream((rank(), world_size()), again, True))


def _blocks(rows: Any, tokenizer: Any, mode: Mode, size: int) -> tuple[EncodedDataset, EncodeStats]:
    stats, documents = EncodeStats(), []
    for row in encode_stream(rows, tokenizer, mode=mode):
        stats.rows += 1
        stats.tokens += len(row.input_ids)
        stats.trained += row.trained
        documents.append(row.input_ids)
    stats.check()
    return block_dataset(documents, size), stats


def step_sizes(
    recipe: Recipe, dataset: EncodedDataset, stats: EncodeStats, vocabulary: int, device: str, processes: int
) -> dict[str, int]:
    """Global batch → sequences, micro-batch and accumulation of one process.

    A batch of rows is counted in rows before packing, so packing changes the speed and not the mathematics. The
    automatic micro-batch bounds tokens, and the fp32 logits (tokens × vocabulary × 4 bytes).
    """
    batch, longest = recipe.train.batch, recipe.data.max_length
    tokens_each = max(1.0, stats.tokens / max(1, len(dataset)))
    kept_rows = max(1, stats.rows - stats.dropped)
    rows_each = kept_rows / len(dataset) if dataset.bins is not None else 1.0
    wanted = batch.size / (tokens_each if batch.unit == "tokens" else rows_each)
    per_process = max(1, round(wanted / processes))
    cap = CPU_TOKENS if device == "cpu" else min(GPU_TOKENS, int(LOGIT_BYTES / (4 * vocabulary)))
    length = longest if dataset.bins is not None else min(longest, int(2 * tokens_each))
    micro = batch.micro if isinstance(batch.micro, int) else max(1, cap // max(1, length))
    accumulation = -(-per_process // min(micro, per_process))
    micro = -(-per_process // accumulation)
    each = -(-len(dataset) // (micro * processes))
    per_epoch = -(-each // accumulation)
    steps = recipe.train.max_steps or max(1, round(per_epoch * recipe.train.epochs))
    if batch.ramp and not recipe.train.max_steps:
        steps = steps_to_read(batch, micro, accumulation * processes, len(dataset) * recipe.train.epochs)
    return {
        "micro": micro,
        "accumulation": accumulation,
        "steps": steps,
        "sequences_a_step": micro * accumulation * processes,
    }
