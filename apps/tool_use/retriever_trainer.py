"""Contrastive training of a retriever: the library's loss in the frame that every stage has.

The loss is sentence-transformers' multiple negatives ranking (Henderson et al. 2017): every tool of the batch, and the
negatives that rows bring, are candidates of every question. A batch therefore holds no tool and no question twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import nn
from torch.nn import functional as F
from transformers import Trainer

from core.config.schema import BackendConfig, TrainConfig
from core.data.distinct import BatchOrder, RowDataset
from core.data.encode import EncodeStats
from core.errors import ConfigError
from core.models.attention import without_planning
from core.training.saving import Saving
from core.training.schedule import Scheduled

WORTH_A_PASS = 16384
"""Padded tokens from which a pass over a GPU costs more than its launches."""


@dataclass(frozen=True)
class ToolPair:
    """A question, the document of a right tool, and documents of wrong ones."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    group: str = ""

    @property
    def keys(self) -> tuple[str, str]:
        return self.query, self.positive

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.query, self.positive, *self.negatives)


def encode_tool_pairs(
    rows: Sequence[ToolPair], tokenizer: Any, *, mode: str = "offsets", max_length: int | None = None
) -> tuple[RowDataset, EncodeStats]:
    """Rows as they are, texts being tokenised batch by batch by the model itself; counted in tokens here."""
    flat = [text for row in rows for text in row.texts]
    lengths = [len(ids) for ids in tokenizer(flat, add_special_tokens=False)["input_ids"]] if flat else []
    cut = sum(length > max_length for length in lengths) if max_length else 0
    tokens = sum(min(length, max_length or length) for length in lengths)
    stats = EncodeStats(rows=len(rows), cut_rows=cut, tokens=tokens, trained=tokens)
    stats.check()
    return RowDataset(rows), stats


class RetrieverTrainer(Scheduled, Saving, Trainer):
    """Trainer of a `BiEncoder` on `ToolPair`s.

    Args:
        batch: rows of a step over all processes. temperature: of the softmax over candidates.
        micro: texts encoded at once; a larger batch is encoded twice, with the same gradients (Gao et al. 2021).
        max_length: tokens of a text that are read.
        Other arguments are those of every stage's trainer.
    """

    lr_scheduler: Any
    objective: Any

    def __init__(
        self,
        *,
        model: Any,
        args: Any,
        train_dataset: Any,
        eval_dataset: Any = None,
        callbacks: list[Any] | None = None,
        data_collator: Any = None,
        train_config: TrainConfig,
        backend: BackendConfig | None = None,
        keep: int = 3,
        mode: str = "sync",
        batch: int,
        temperature: float,
        micro: int,
        max_length: int,
    ) -> None:
        processes = max(1, args.world_size)
        if batch % processes:
            raise ConfigError(f"{processes} processes cannot share a batch of {batch}", where="train.batch.size")
        args.per_device_train_batch_size, args.gradient_accumulation_steps = batch // processes, 1
        dataset = train_dataset if isinstance(train_dataset, RowDataset) else train_dataset.dataset
        if model.max_seq_length != float("inf"):
            model.max_seq_length = min(model.max_seq_length or max_length, max_length)
        self.order = BatchOrder(dataset.rows, batch, args.seed, distinct=True)
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            eval_dataset=eval_dataset,
            data_collator=lambda rows: _columns(model, rows),
            callbacks=callbacks,
        )
        options: dict[str, Any] = {"scale": 1 / temperature, "gather_across_devices": processes > 1}
        # A table of word vectors keeps no activations worth dropping, and its rows cannot be cut apart.
        cached = batch // processes > micro and isinstance(model[0], Transformer)
        if cached:
            options["mini_batch_size"] = micro
        kind = CachedMultipleNegativesRankingLoss if cached else MultipleNegativesRankingLoss
        self.objective = kind(model, **options)
        self.train_config, self.backend, self.useful_tokens = train_config, backend or BackendConfig(), 0
        self.set_up_saving(keep, mode)

    def _get_train_sampler(self, train_dataset: Any = None) -> BatchOrder:
        return self.order

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with without_planning(self.args.device):  # a cached loss encodes again in its backward pass
            return super().training_step(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The loss of the whole batch; the wrapped model is called, so that processes share their gradients."""
        columns = inputs["columns"]
        self.useful_tokens += sum(_tokens(column) for column in columns)
        if self.args.device.type == "cuda" and isinstance(self.objective, MultipleNegativesRankingLoss):
            columns = together(model, columns)
        # What is embedded already passes through.
        self.objective.model = nn.Identity() if "sentence_embedding" in columns[0] else model
        return self.objective(columns, None)

    def held_out(self, dataset: RowDataset) -> dict[str, float]:
        """The same loss over held-out rows, in batches as in training."""
        module = self.accelerator.unwrap_model(self.model)
        largest = min(self.order.batch, len({row.positive for row in dataset.rows}), len(dataset))
        order, training, losses = BatchOrder(dataset.rows, largest, 0, True), module.training, []
        module.eval()
        loss = MultipleNegativesRankingLoss(module, scale=self.objective.scale)
        for chosen in order.batches():
            inputs = self._prepare_inputs(_columns(module, [dataset[i] for i in chosen]))
            with torch.no_grad(), without_planning(self.args.device), self.compute_loss_context_manager():
                losses.append(float(loss(inputs["columns"], None)))
        module.train(training)
        return {"loss": sum(losses) / len(losses)}


def _columns(model: Any, rows: Sequence[ToolPair]) -> dict[str, Any]:
    """The features of questions, of right tools, and of each negative, as the loss takes them."""
    width = min(len(row.texts) for row in rows)
    return {"columns": [dict(model.preprocess([row.texts[i] for row in rows])) for i in range(width)]}


def together(model: Any, columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The columns with their embeddings, from one pass over all of them where they are small and padded behind.

    A small pass over a GPU costs its launches, not its arithmetic. Other columns come back as they are.
    """
    shapes = [column["input_ids"].shape for column in columns if column["input_ids"].ndim == 2]
    longest = max((length for _, length in shapes), default=0)
    side = getattr(getattr(model, "tokenizer", None), "padding_side", None)
    if len(shapes) < len(columns) or side != "right" or sum(n for n, _ in shapes) * longest > WORTH_A_PASS:
        return columns
    merged = dict(columns[0])
    for name, value in columns[0].items():
        if isinstance(value, torch.Tensor):
            parts = [column[name] for column in columns]
            merged[name] = torch.cat([F.pad(part, (0, longest - part.shape[1])) for part in parts])
    found = model(merged)["sentence_embedding"]
    return [{"sentence_embedding": part} for part in found.split([n for n, _ in shapes])]


def _tokens(column: dict[str, Any]) -> int:
    mask = column.get("attention_mask")
    return int(mask.sum()) if mask is not None else column["input_ids"].numel()
