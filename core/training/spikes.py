"""Going back when the loss spikes.

A long pre-training run now and then meets a loss that jumps and does not come back by itself. The cure in use
(Chowdhery et al. 2022, PaLM) is to take the weights and the optimizer of an earlier checkpoint and to go on with later
data, so that the batches around the spike are left out. Here that happens without a person: the data, the step counter
and the learning rate go on, weights and moments go back.

A look at the loss costs a wait for the device, so it is taken every few steps, on the mean loss of the steps since the
last look. What the guard remembers is in every checkpoint, and it goes back only to checkpoints on disk, so that a run
that was killed and resumed decides as one that was not.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from core.errors import BudgetExceeded
from core.training import checkpoint
from core.training.callbacks import say
from core.training.spike_level import SpikeConfig, threshold


class SpikeGuard(TrainerCallback, ExportableState):
    """Watches one trainer's loss; see `guarded`.

    Args:
        run, stage: where what happened is logged; None logs nothing.
    """

    def __init__(self, trainer: Any, config: SpikeConfig, run: Any = None, stage: str = "") -> None:
        self.trainer, self.config, self.run, self.stage = trainer, config, run, stage
        self.looks: list[float] = []
        self.high = 0
        self.since: int | None = None
        self.rollbacks = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if not self.config.every or state.global_step % self.config.every:
            return
        loss = self.trainer.mean_recent_loss()
        level = threshold(self.looks, self.config.deviations)
        if loss <= level:
            self.looks = [*self.looks, loss][-self.config.window :]
            self.high, self.since = 0, None
            return
        self.high += 1
        if self.since is None:
            self.since = state.global_step - self.config.every
        if self.high >= self.config.patience or not math.isfinite(loss):
            self._go_back(args, state, control, loss, level)

    def _go_back(self, args: Any, state: Any, control: Any, loss: float, level: float) -> None:
        self.trainer.writer.wait()
        if self.rollbacks >= self.config.limit:
            raise BudgetExceeded(
                f"the loss spiked again ({loss:.3f}) after going back {self.rollbacks} times",
                where=f"step {state.global_step}",
                hint="lower train.lr or raise train.warmup; with.spikes.limit allows more",
            )
        place = self._before_the_spike(Path(args.output_dir))
        if place is None and not math.isfinite(loss):
            raise BudgetExceeded(
                "the loss is not finite, and there is no earlier checkpoint to go back to",
                where=f"step {state.global_step}",
                hint="lower train.lr, or set a smaller checkpoint.every",
            )
        if place is not None:
            self.trainer.take_back(place)
            self.rollbacks += 1
            control.should_save = True
            self._say(state.global_step, loss, level, place.name)
        self.high, self.since = 0, None

    def _before_the_spike(self, folder: Path) -> Path | None:
        """The newest checkpoint from before the first step of the first high look."""
        sound = [p for p in checkpoint.checkpoints(folder) if int(p.name.split("-")[1]) <= (self.since or 0)]
        return sound[-1] if sound else None

    def _say(self, step: int, loss: float, level: float, name: str) -> None:
        if self.run is None:
            return
        say(self.run, f"{self.stage} {step}: loss {loss:.3f} above {level:.3f}; weights of {name}, later data")
        self.run.log_metric({"stage": self.stage, "step": step, "spike": loss, "taken": name})

    # ---- resume ----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        attributes = {
            "looks": self.looks, "high": self.high, "since": self.since, "rollbacks": self.rollbacks,
            "recent": self.trainer.recent,
        }  # fmt: skip
        return {"args": {}, "attributes": attributes}

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        stored = (state.stateful_callbacks or {}).get(type(self).__name__)
        if not state.global_step or stored is None:
            return
        found = (stored[0] if isinstance(stored, list) else stored)["attributes"]
        self.looks, self.high, self.since = list(found["looks"]), found["high"], found["since"]
        self.rollbacks = found["rollbacks"]
        self.trainer.recent = found["recent"]


def guarded(trainer_cls: type, config: SpikeConfig, run: Any = None, stage: str = "") -> type:
    """`trainer_cls` (a `Saving` trainer) with a guard; the class itself when the guard never looks."""
    if not config.every:
        return trainer_cls

    class Guarded(trainer_cls):  # type: ignore[misc, valid-type]
        """A trainer whose loss is watched."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._recent: Any = 0.0
            self.guard = SpikeGuard(self, config, run, stage)
            self.add_callback(self.guard)

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            self._recent = self._recent + loss.detach().double()
            return loss

        @property
        def recent(self) -> float:
            """Summed loss of the steps since the last look; kept on the device until it is asked for."""
            return float(self._recent)

        @recent.setter
        def recent(self, total: float) -> None:
            self._recent = total

        def mean_recent_loss(self) -> float:
            """Mean loss of the optimizer steps since the last look, over all processes; the sum begins anew."""
            box = torch.as_tensor(self._recent, dtype=torch.float64, device=self.args.device)
            self.recent = 0.0
            return float(self.accelerator.reduce(box, "mean")) / config.every

        def take_back(self, place: Path) -> None:
            """Weights and moments of a checkpoint; rate, data and step counter stay as they are."""
            model = self.accelerator.unwrap_model(self.model)
            load_weights(model, place)
            rates = [group["lr"] for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(torch.load(place / "optimizer.pt", map_location="cpu", weights_only=True))
            for group, rate in zip(self.optimizer.param_groups, rates):
                group["lr"] = rate

    return Guarded


def load_weights(model: Any, folder: Path) -> None:
    """The weights of a checkpoint into the tensors that `model` has."""
    from safetensors.torch import load_file

    state = {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, state)
    else:
        model.load_state_dict(state, strict=False)
        model.tie_weights()
