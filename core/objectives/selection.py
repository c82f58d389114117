"""Looking at the model every n steps and changing what is trained: the schedule, its randomness and its resume.

A selection method says what happens when a window opens and when it closes; this callback says when that is, hands it
the bare optimizer, and lets a resumed run go on as if it had never stopped. Sparse support, masks and tensor sets are
chosen by its subclasses; it knows nothing of them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from core.errors import CheckpointError, ConfigError

Policy = Literal["linear", "cosine", "constant"]


def replacement_rate(policy: Policy, initial: float, step: int, total: int) -> float:
    """The share that is replaced at `step` of `total`: linear ρ₀(1 - t/T), cosine ρ₀(1 + cos(πt/T))/2, or constant."""
    progress = min(step / max(total, 1), 1.0)
    if policy == "linear":
        return initial * (1 - progress)
    if policy == "cosine":
        return initial * (1 + math.cos(math.pi * progress)) / 2
    return initial


class SelectionCallback(TrainerCallback, ExportableState):
    """Opens a window every `every` optimizer steps and closes it `window` steps later.

    Args:
        every: steps from one opening to the next.
        window: steps between opening and closing; 0 closes in the same step.
        seed: of `generator`, the only source of randomness a selection may use.
        first: the step after which the first window opens, `every` by default; 0 is the start of training.

    Subclasses define `open` and `close`; what they gather in between they hand over in `tensors` and take back in
    `load_tensors`, and plain values in `plain` and `load_plain`.
    """

    name = "selection"

    def __init__(self, every: int, window: int = 0, seed: int = 0, first: int | None = None) -> None:
        if every < 1 or not 0 <= window < every:
            raise ConfigError(
                f"a window of {window} steps every {every}", hint="a window ends before the next one opens"
            )
        self.every, self.window, self.seed = every, window, seed
        self.first = every if first is None else first
        self.opened: int | None = None
        self.selections = 0
        self.generator = torch.Generator().manual_seed(seed)

    # ---- what subclasses define ------------------------------------------------------------------------------------

    def ended(self) -> bool:
        """Whether no further window is wanted."""
        return False

    def open(self, model: Any, step: int, total: int) -> None:
        """A window opens after optimizer step `step`."""

    def close(self, model: Any, optimizer: Any, step: int, total: int) -> None:
        """The window closes: change what is trained, and the state of the bare `optimizer` with it."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What has been gathered in an open window."""
        return {}

    def load_tensors(self, found: dict[str, torch.Tensor]) -> None:
        """Take back what `tensors` gave."""

    def plain(self) -> dict[str, Any]:
        """Further JSON values to be restored."""
        return {}

    def load_plain(self, found: dict[str, Any]) -> None:
        """Take back what `plain` gave."""

    # ---- when ------------------------------------------------------------------------------------------------------

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        step, total = state.global_step, state.max_steps
        model = unwrapped(given["model"])
        self._open_at(model, step, total)
        if self.opened is not None and step >= self.opened + self.window:
            self.close(model, bare(given.get("optimizer")), step, total)
            self.opened = None
            self.selections += 1

    def _open_at(self, model: Any, step: int, total: int) -> None:
        due = step >= self.first and (step - self.first) % self.every == 0 and step + self.window < total
        if due and self.opened is None and not self.ended():
            self.opened = step
            self.open(model, step, total)

    # ---- resume ----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Position, randomness and plain values, as the Trainer keeps them in its own state."""
        attributes = {
            "opened": self.opened,
            "selections": self.selections,
            "random": self.generator.get_state().tolist(),
            "plain": self.plain(),
        }
        return {"args": {}, "attributes": attributes}

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """What an open window holds goes beside this step's checkpoint, and leaves with the last older checkpoint."""
        folder = Path(args.output_dir)
        steps = [int(name) for p in folder.glob("checkpoint-*") if (name := p.name.rpartition("-")[2]).isdigit()]
        for file in folder.glob(f"{self.name}-*.safetensors"):
            if steps and int(file.stem.rpartition("-")[2]) < min(steps):
                file.unlink(missing_ok=True)
        if self.opened is not None and state.is_world_process_zero and (held := self.tensors()):
            from safetensors.torch import save_file

            place = self._file(args, state.global_step)
            save_file({name: tensor.contiguous() for name, tensor in held.items()}, place.with_suffix(".tmp"))
            place.with_suffix(".tmp").replace(place)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        stored = (state.stateful_callbacks or {}).get(type(self).__name__)
        if not state.global_step:
            self._open_at(unwrapped(given["model"]), 0, state.max_steps)
        if not state.global_step or stored is None:
            return
        attributes = (stored[0] if isinstance(stored, list) else stored)["attributes"]
        self.opened, self.selections = attributes["opened"], attributes["selections"]
        self.generator.set_state(torch.tensor(attributes["random"], dtype=torch.uint8))
        self.load_plain(attributes["plain"])
        place = self._file(args, state.global_step)
        if place.is_file():
            from safetensors.torch import load_file

            self.load_tensors(load_file(place))
        elif self.opened is not None and self.window:
            raise CheckpointError(
                "the checkpoint was taken inside a selection window whose values are gone",
                where=str(place),
                hint="resume at another checkpoint",
            )

    def _file(self, args: Any, step: int) -> Path:
        return Path(args.output_dir) / f"{self.name}-{step}.safetensors"


def bare(optimizer: Any) -> Any:
    """The optimizer itself, without accelerate's wrapper."""
    while optimizer is not None and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def unwrapped(model: Any) -> Any:
    """The model itself, without DDP's or torch.compile's wrapper."""
    while hasattr(model, "module") and not hasattr(model, "peft_config") and not hasattr(model, "config"):
        model = model.module
    return getattr(model, "_orig_mod", model)
