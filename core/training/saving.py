"""A Trainer that writes its checkpoints whole, at once or in the background.

What a checkpoint holds is copied to host memory between two steps; only the writing differs. `sync` writes before the
next step, `async` in a thread beside the following ones, with one write in flight: a storm of saves slows training
down and never fills the memory. A write that fails ends the run with the earlier checkpoints intact. The mixin works
over any transformers Trainer and knows nothing of losses or data.
"""

from __future__ import annotations

import dataclasses
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_callback import ExportableState

from core.errors import CheckpointError
from core.training import checkpoint


class BackgroundWriter:
    """Runs one job at a time in a thread; what it raises comes up at the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Run `job` beside the caller, after the one before it has ended."""
        self.wait()

        def run() -> None:
            try:
                job()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written. Raises what the last job raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.poll()

    def poll(self) -> None:
        """Raise what a job has raised, without waiting."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def to_host(value: Any, memo: dict[int, torch.Tensor] | None = None) -> Any:
    """A copy of a nested state in host memory that later steps cannot change; tensors that are one stay one."""
    memo = {} if memo is None else memo
    if isinstance(value, torch.Tensor):
        if id(value) not in memo:
            memo[id(value)] = value.detach().to("cpu", copy=True).contiguous()
        return memo[id(value)]
    if isinstance(value, dict):
        return {name: to_host(item, memo) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([to_host(item, memo) for item in value])
    return value


def whole(state: dict[str, Any]) -> dict[str, Any]:
    """`state`, of which nothing is empty. Raises `CheckpointError` for weights of which this process holds no part."""
    empty = [name for name, tensor in state.items() if isinstance(tensor, torch.Tensor) and not tensor.numel()]
    if empty:
        raise CheckpointError(
            f"{len(empty)} of {len(state)} weights are empty here, {empty[0]} first: they lie on other processes",
            hint="gather them before they are saved",
        )
    return state


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from, in the form that transformers reads."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        single = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        state["cuda"] = torch.cuda.get_rng_state() if single else torch.cuda.get_rng_state_all()
    return state


def on_every_rank(value: Any) -> list[Any]:
    """The value of each process, in order, on the main one; on the others only their own."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    box = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, box, dst=0)
    return box if box is not None else [value]


class Saving:
    """Mixin for a Trainer: `class MyTrainer(Saving, Trainer)`.

    Attributes:
        keep: newest checkpoints kept; the best is kept besides. mode: sync or async.
        best_value: the selected metric's best value so far. mark_best: the next checkpoint is the best.
        notes: more to keep in the manifest, by name: () -> value, asked on every process.
        tokens_before: tokens of earlier sittings of a resumed run.
    """

    keep: int = 3
    mode: str = "sync"
    best_value: float | None = None
    mark_best: bool = False
    tokens_before: int = 0

    def set_up_saving(self, keep: int, mode: str) -> None:
        self.keep, self.mode = keep, mode
        self.writer, self.notes = BackgroundWriter(), dict[str, Callable[[], Any]]()

    def _save(self: Any, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Weights into a folder. Asked to decide about embeddings for itself, peft would ask a hub for the base."""
        model = self.accelerator.unwrap_model(self.model)
        if not hasattr(model, "peft_config"):
            super()._save(output_dir, state_dict)  # type: ignore[misc]
        elif self.args.should_save:
            model.save_pretrained(output_dir, save_embedding_layers=False)

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        states = on_every_rank(random_state())
        notes = {"best_value": self.best_value, "best": self.mark_best, **{n: note() for n, note in self.notes.items()}}
        self.mark_best = False
        if self.args.should_save:
            write = self._frozen(states)
            folder, step, keep = Path(self.args.output_dir), self.state.global_step, self.keep

            def job() -> None:
                checkpoint.commit(folder, step, write, notes)
                checkpoint.rotate(folder, keep)

            if self.mode == "async":
                self.writer.start(job)
            else:
                job()
        self.accelerator.wait_for_everyone()

    def _frozen(self: Any, states: list[Any]) -> Callable[[Path], None]:
        """What writes the state of this moment into a folder, whatever training does meanwhile."""
        self._export_states()
        weights = self._frozen_weights(self.accelerator.unwrap_model(self.model))
        optimizer, scheduler = to_host(self.optimizer.state_dict()), dict(self.lr_scheduler.state_dict())
        state = json.dumps(dataclasses.asdict(self.state), indent=2, sort_keys=True) + "\n"

        def write(place: Path) -> None:
            weights(place)
            torch.save(optimizer, place / "optimizer.pt")
            torch.save(scheduler, place / "scheduler.pt")
            torch.save(states[0], place / "rng_state.pth")
            for rank, generators in enumerate(states if len(states) > 1 else ()):
                torch.save(generators, place / f"rng_state_{rank}.pth")
            (place / "trainer_state.json").write_text(state, encoding="utf-8")

        return write

    def _frozen_weights(self: Any, model: Any) -> Callable[[Path], None]:
        """All weights of a plain model, or those of the adapter that trains."""
        if not hasattr(model, "peft_config"):
            state = to_host(whole(model.state_dict(keep_vars=True)))
            return lambda place: super(Saving, self)._save(str(place), state_dict=state)  # type: ignore[misc]
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        adapter = to_host(whole(get_peft_model_state_dict(model, save_embedding_layers=False)))
        config = model.peft_config

        def write(place: Path) -> None:
            save_file(adapter, place / "adapter_model.safetensors", metadata={"format": "pt"})
            config["default"].save_pretrained(str(place))

        return write

    def _export_states(self: Any) -> None:
        exportable = [c for c in [*self.callback_handler.callbacks, self.control] if isinstance(c, ExportableState)]
        for callback in exportable:
            self.state.stateful_callbacks[type(callback).__name__] = callback.state()
