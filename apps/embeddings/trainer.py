"""Contrastive training of any batch size, exactly, on one process or several.

The loss of a step is the loss of the whole batch over all processes. Texts are encoded in chunks of like length; their
embeddings meet, the loss gives a gradient for each embedding, and that is sent back through the chunks (gradient
caching, Gao et al. 2021). Chunks keep their graph while it fits into `keep_tokens`; the others are encoded a second
time under the same random state. Every process computes the same loss from all embeddings and sends back the gradients
of its own, so that their sum over processes is the gradient of one big batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer

from apps.embeddings.encode import Text, by_length, padded
from apps.embeddings.objective import Batch, known_right
from core.config.schema import BackendConfig, TrainConfig
from core.data.distinct import BatchOrder
from core.data.distinct import RowDataset as ContrastDataset
from core.errors import ConfigError
from core.models.attention import without_planning
from core.training.saving import Saving
from core.training.schedule import schedule

WORTH_A_PASS = 8192
"""Padded tokens from which a pass over a GPU costs more than its launches."""


@dataclass(frozen=True)
class Contrast:
    """One row: query, positive and negatives as ids; `keys` of the same texts; rows of one `group` share batches.

    Args:
        right: keys of all texts that are no wrong answer to the query, where they are known: no batch shows them all.
    """

    texts: tuple[Text, ...]
    keys: tuple[int, ...]
    group: str
    score: float = 1.0
    right: tuple[int, ...] = ()


def key_of(text: str) -> int:
    """A number that equal texts share, the same in every process."""
    raw = text.encode("utf-8")
    return (zlib.crc32(raw) << 31) ^ zlib.adler32(raw)


class ChunkCollator:
    """Rows of one process → chunks of texts of like length, and what the loss needs to know of them.

    A document that stands in several rows is encoded once; `places` says where each text of the batch is found. A query
    is apart from an equal document: under dropout the two differ, which is what such a pair teaches (Gao et al. 2021,
    SimCSE).
    """

    def __init__(self, pad: int, chunk_tokens: int, least: int = 1024) -> None:
        self.pad, self.chunk_tokens, self.least = pad, chunk_tokens, least

    def __call__(self, rows: Sequence[Contrast]) -> dict[str, Any]:
        columns = min(len(row.texts) for row in rows)
        numbers: dict[Any, int] = {}
        texts: list[Text] = []
        places = []
        for column in range(columns):
            for row in rows:
                text = row.texts[column]
                place = numbers.setdefault((column > 0, text.prompt, *text.ids), len(texts))
                if place == len(texts):
                    texts.append(text)
                places.append(place)
        chunks = []
        for group in by_length([len(text.ids) for text in texts], self.chunk_tokens, self.least):
            chunks.append({**padded([texts[i] for i in group], self.pad), "index": torch.tensor(group)})
        known = {}
        if all(row.right for row in rows):
            width = max(len(row.right) for row in rows)
            known["right"] = torch.tensor([row.right + row.right[:1] * (width - len(row.right)) for row in rows])
        return {
            **known,
            "chunks": chunks,
            "places": torch.tensor(places),
            "keys": torch.tensor([row.keys[:columns] for row in rows]),
            "scores": torch.tensor([row.score for row in rows]),
            "useful": sum(len(text.ids) for text in texts),
        }


class ContrastiveTrainer(Saving, Trainer):
    """Trainer for rows of query, positive and negatives.

    Args:
        objective: from a `Batch` to the loss. batch: rows of a step over all processes.
        distinct: keep equal texts out of one batch. pad: id of padding. chunk_tokens: padded tokens encoded at once.
        keep_tokens: padded tokens whose activations are kept for the way back; the rest is encoded twice. 0 for either
            takes what the device's memory suggests.
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
        objective: Callable[[Batch], torch.Tensor],
        batch: int,
        distinct: bool,
        pad: int,
        chunk_tokens: int = 0,
        keep_tokens: int = 0,
    ) -> None:
        processes = max(1, args.world_size)
        if batch % processes:
            raise ConfigError(f"{processes} processes cannot share a batch of {batch}", where="train.batch.size")
        args.per_device_train_batch_size, args.gradient_accumulation_steps = batch // processes, 1
        args.average_tokens_across_devices = False
        # A wrapper for several processes fills the data up; here the order of the batches does that.
        dataset = train_dataset if isinstance(train_dataset, ContrastDataset) else train_dataset.dataset
        fitting = tokens_that_fit(model, args.device)
        chunk_tokens = chunk_tokens or (fitting if args.device.type == "cpu" else min(fitting, 65536))
        self.order = BatchOrder(dataset.rows, batch, args.seed, distinct)
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            eval_dataset=eval_dataset,
            data_collator=ChunkCollator(pad, chunk_tokens, 1024 if args.device.type == "cpu" else WORTH_A_PASS),
            callbacks=callbacks,
        )
        self.train_config, self.backend = train_config, backend or BackendConfig()
        self.objective, self.keep_tokens, self.useful_tokens = objective, keep_tokens or fitting, 0
        self.set_up_saving(keep, mode)

    def _get_train_sampler(self, train_dataset: Any = None) -> BatchOrder:
        return self.order

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            factor = schedule(self.train_config, num_training_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        module = self.accelerator.unwrap_model(model)
        module.train()
        inputs = self._prepare_inputs(inputs)
        self.useful_tokens += int(inputs["useful"])
        with without_planning(self.args.device), self.compute_loss_context_manager():
            return step(module, inputs, self.objective, self.keep_tokens)

    def held_out(self, dataset: Any) -> dict[str, float]:
        """The same loss over held-out rows, in batches as in training."""
        module = self.accelerator.unwrap_model(self.model)
        order = BatchOrder(dataset.rows, min(len(dataset), self.order.batch), 0, self.order.distinct)
        training, losses = module.training, []
        module.eval()
        for chosen in order.batches():
            inputs = self._prepare_inputs(self.data_collator([dataset[i] for i in chosen]))
            with torch.no_grad(), without_planning(self.args.device), self.compute_loss_context_manager():
                found = torch.cat([module(**_inputs(chunk)) for chunk in inputs["chunks"]])
                losses.append(float(self.objective(batch_of(_ordered(found, inputs), inputs))))
        module.train(training)
        return {"loss": sum(losses) / len(losses)}


def tokens_that_fit(model: Any, device: torch.device) -> int:
    """Padded tokens whose activations take half of what this process may still use; on a CPU, of 2 GiB."""
    from core.training.fitting import available

    config = model.config
    layers, width = getattr(config, "num_hidden_layers", 12), getattr(config, "hidden_size", 1024)
    inner = getattr(config, "intermediate_size", None) or 4 * width
    usable = available(device.type)
    free = 2 * 2**30 if usable is None else usable - torch.cuda.memory_allocated(device)
    # A block keeps about 14 arrays of its width and 3 of its feed-forward width, at 4 bytes at most.
    return max(512, int(0.5 * free / (layers * (14 * width + 3 * inner) * 4)))


def step(module: Any, inputs: dict[str, Any], objective: Callable[[Batch], torch.Tensor], keep: int) -> torch.Tensor:
    """Gradients of the whole batch's loss into the parameters of `module`, summed over processes; returns the loss."""
    chunks, states, kept, found = inputs["chunks"], [], [], []
    budget = keep
    for chunk in chunks:
        budget -= chunk["input_ids"].numel()
        kept.append(budget >= 0)
        states.append(None if kept[-1] else _random_state(chunk["input_ids"].device))
        with torch.set_grad_enabled(kept[-1]):
            found.append(module(**_inputs(chunk)))
    leaf = _ordered(torch.cat([part.detach() for part in found]).float(), inputs).requires_grad_()
    loss = objective(batch_of(leaf, inputs))
    (gradient,) = torch.autograd.grad(loss, leaf)
    for chunk, state, part in zip(chunks, states, found):
        if state is not None:
            with _as_it_was(state, chunk["input_ids"].device):
                part = module(**_inputs(chunk))
        part.backward(gradient[chunk["index"]].to(part.dtype))
    sum_gradients(module)
    return loss.detach()


def _inputs(chunk: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chunk.items() if name != "index"}


def _ordered(found: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """Embeddings as the chunks gave them → in the order of the texts that they encode."""
    numbers = torch.cat([chunk["index"] for chunk in inputs["chunks"]])
    return torch.empty_like(found).index_copy(0, numbers, found)


def batch_of(local: torch.Tensor, inputs: dict[str, Any]) -> Batch:
    """The batch of all processes from the embeddings (texts, d) of this one; only its own carry a gradient."""
    keys, scores = _all(inputs["keys"]), _all(inputs["scores"])
    columns = keys.shape[-1]
    own = local[inputs["places"]].unflatten(0, (columns, -1)).transpose(0, 1).contiguous()
    everything = _all(own)
    q, p, n = everything[:, 0], everything[:, 1], everything[:, 2:]
    # what a process knows of its own queries differs in width; what follows from it for all documents does not
    right = _all(known_right(inputs["right"], keys[:, 1:])) if "right" in inputs else None
    return Batch(q, p, n, keys[:, 0], keys[:, 1], keys[:, 2:], scores, right)


def _all(own: torch.Tensor) -> torch.Tensor:
    """Rows of all processes, in their order; this one's keep their gradient."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own.detach().contiguous())
    parts[dist.get_rank()] = own
    return torch.cat(parts)


def sum_gradients(module: Any) -> None:
    """Add up the gradients of all processes, in one message for each dtype."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.grad is not None:
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        torch._foreach_copy_(
            gradients, [part.view_as(g) for part, g in zip(flat.split([g.numel() for g in gradients]), gradients)]
        )


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


class _as_it_was:
    """The random state of before, for the time of the context."""

    def __init__(self, state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
        self.state, self.fork = state, torch.random.fork_rng([device] if device.type == "cuda" else [])
        self.device = device

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.set_rng_state(self.state[0])
        if self.state[1] is not None:
            torch.cuda.set_rng_state(self.state[1], self.device)

    def __exit__(self, *exc: Any) -> None:
        self.fork.__exit__(*exc)
