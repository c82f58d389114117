"""A Trainer that reads an endless stream and goes on in it exactly where a checkpoint was written.

The loader runs ahead of training, so its own place in the stream is not the place to go on from. Every batch therefore
says how far its worker was when it was made, and the last batch that was trained on counts. A resumed loader starts
with the worker whose turn it was. Batches come from a loader of ours: each process reads its own share of the windows,
and nothing is drawn from the random numbers that training uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback

from core.data.dataset import IterableEncodedDataset
from core.distributed.launch import rank, world_size
from core.errors import CheckpointError
from core.training.saving import on_every_rank

PLACE = ("worker", "passes", "windows", "emitted")


def streaming(trainer_cls: type) -> type:
    """`trainer_cls` for an `IterableEncodedDataset` as its train_dataset."""
    return type(f"Streaming{trainer_cls.__name__}", (Streaming, trainer_cls), {})


class Streaming:
    """Mixin for a Trainer with `Saving`."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.args.ignore_data_skip = True
        self.batches, self.places = 0, dict[int, dict[str, int]]()
        self.notes["stream"] = lambda: on_every_rank(self._place())
        self.add_callback(Passes(self))

    def get_train_dataloader(self: Any) -> DataLoader:
        dataset, workers = self.train_dataset, self.args.dataloader_num_workers
        return DataLoader(
            _Placed(dataset),
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=_Collate(self.data_collator),
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def training_step(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        place = dict(zip(PLACE, inputs.pop("place").tolist()))
        self.batches, self.places[place.pop("worker")] = self.batches + 1, place
        return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]

    def _place(self: Any) -> dict[str, Any]:
        workers = {str(worker): place for worker, place in self.places.items()}
        return {"batches": self.batches, "loaders": self.args.dataloader_num_workers, "workers": workers}

    def go_on_reading(self: Any, places: list[dict[str, Any]] | None) -> None:
        """Continue from the places that a checkpoint noted, one of each process.

        Raises:
            CheckpointError: the run was read by another number of processes or of loader workers.
        """
        loaders = self.args.dataloader_num_workers
        if not places or len(places) != world_size() or places[0]["loaders"] != loaders:
            was = f"{len(places or [])} process(es) with {places[0]['loaders'] if places else '?'} loader worker(s)"
            raise CheckpointError(
                f"the stream was read by {was}, now there are {world_size()} with {loaders}",
                where="backend.workers",
                hint="resume with as many as before; a stream is shared out among them",
            )
        own = places[rank()]
        self.batches = own["batches"]
        self.places = {int(worker): place for worker, place in own["workers"].items()}
        dataset = self.train_dataset
        if loaders == 0 and 0 in self.places:
            dataset.load_state_dict(self.places[0])
        dataset.workers, dataset.first_worker = self.places, self.batches % max(loaders, 1)


class Passes(TrainerCallback):
    """The epoch of a stream is the number of times it was read whole."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = float(max((place["passes"] for place in self.trainer.places.values()), default=0))


class _Placed(IterableDataset):
    """The stream's items together with their places."""

    def __init__(self, dataset: IterableEncodedDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return self.dataset.placed()


class _Collate:
    """The Trainer's collator, and the place of the batch's last item, shape (4,)."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, pairs: Any) -> dict[str, Any]:
        last = pairs[-1][1]
        batch = self.collator([item for item, _ in pairs])
        return {**batch, "place": torch.tensor([last[name] for name in PLACE])}
