"""What watches a run: the live line, the metric of the task, and Ctrl-C.

The task's metric is measured by the app's own pipeline and evaluator on the live model, within a time budget; the best
checkpoint is chosen by it. All of it writes to the run folder and none of it changes what is learnt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from core.config.files import write_text
from core.config.run_folder import RunFolder
from core.distributed.launch import agreed, barrier, is_main
from core.training import trackers


def say(run: RunFolder, text: str) -> None:
    """Print on the main process, and keep it in the run's log. A terminal that was closed stalls nothing."""
    if not is_main():
        return
    try:
        print(text, flush=True)
    except OSError:
        silence()
    with open(run.path / "log.txt", "a", encoding="utf-8") as handle:
        handle.write(text + "\n")


def silence() -> None:
    """Go on without a terminal: what is printed from now on goes nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def forget_later(run: RunFolder, stage: str, step: int) -> None:
    """Take out of metrics.jsonl what a stage logged after `step`, which a resumed run is about to do again."""
    if not is_main() or not run.metrics.exists():
        return
    kept = [row for row in run.read_metrics() if row.get("stage") != stage or row.get("step", 0) <= step]
    write_text(run.metrics, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def peak_gib() -> float:
    """Peak memory of this process: allocated on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


TRAINERS_OWN = ("loss", "grad_norm", "learning_rate", "epoch")


class LiveLine(TrainerCallback):
    """One line an interval: step, loss, gradient norm, rate, useful tokens a second, peak memory, time left."""

    def __init__(self, run: RunFolder, stage: str, every_s: float = 2.0) -> None:
        self.run, self.stage, self.every_s = run, stage, every_s
        self.trainer: Any = None
        self.start = self.printed = 0.0
        self.first_step = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.start, self.first_step = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not is_main() or "loss" not in (logs or {}):
            return
        now = time.perf_counter()
        done = max(state.global_step - self.first_step, 1)
        speed = self.trainer.useful_tokens * args.world_size / (now - self.start)
        left = (state.max_steps - state.global_step) * (now - self.start) / done
        row = {
            "stage": self.stage, "step": state.global_step, "of": state.max_steps, "epoch": round(state.epoch or 0, 4),
            "loss": logs["loss"], "grad_norm": logs.get("grad_norm"), "lr": logs.get("learning_rate"),
            "tokens_per_s": round(speed), "peak_gib": round(peak_gib(), 2), "time": time.time(),
        }  # fmt: skip
        row |= {name: value for name, value in logs.items() if name not in TRAINERS_OWN}
        self.run.log_metric(row)
        if now - self.printed >= self.every_s or state.global_step >= state.max_steps:
            self.printed = now
            norm = row["grad_norm"]
            say(
                self.run,
                f"{self.stage} {row['step']}/{row['of']}  loss {row['loss']:.3f}"
                f"  grad {norm if norm is None else round(norm, 2)}"
                f"  lr {row['lr']:.1e}  {row['tokens_per_s']:,} tok/s  {row['peak_gib']:.1f} GiB"
                f"  {int(left // 60)}:{int(left % 60):02d} left",
            )


class TaskMetric(TrainerCallback):
    """Evaluate every so many steps; mark the checkpoint of the best value.

    Args:
        measure: metric values by name, among them the selected one.
        select: the deciding name. higher: whether more of it is better. every: steps.
    """

    def __init__(
        self, run: RunFolder, stage: str, measure: Callable[[], dict[str, float]], select: str, higher: bool, every: int
    ) -> None:
        self.run, self.stage, self.measure, self.select, self.higher, self.every = (
            run, stage, measure, select, higher, every,
        )  # fmt: skip
        self.trainer: Any = None

    def on_step_end(self, args, state, control, **kwargs):
        if self.every <= 0 or state.global_step % self.every and state.global_step < state.max_steps:
            return
        start = time.perf_counter()
        values = self.measure() if is_main() or getattr(self.trainer, "held_out_together", False) else {}
        if is_main():
            row = {"stage": self.stage, "step": state.global_step, "eval": values, "time": time.time()}
            self.run.log_metric(row)
            trackers.report(self.trainer, values)
            shown = "  ".join(f"{k} {v:.3f}" for k, v in values.items() if v is not None)
            say(
                self.run,
                f"{self.stage} {state.global_step}/{state.max_steps}  {shown}  ({time.perf_counter() - start:.1f} s)",
            )
            value = values.get(self.select)
            best = self.trainer.best_value
            if value is not None and (best is None or (value > best if self.higher else value < best)):
                self.trainer.best_value, self.trainer.mark_best = value, True
        barrier()
        if agreed(self.trainer.mark_best):
            control.should_save = True


class StopAndSave(TrainerCallback):
    """The first Ctrl-C (or SIGTERM) ends the step, saves and stops; the second ends at once.

    Processes get their signals at different moments, so they agree after every step: all stop at the same one. A
    launcher may pass on the signal that the terminal has sent already, so one that follows within a second is the same.
    A closed terminal (SIGHUP) is no reason to stop.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run, self.asked, self._asked_at = run, False, 0.0
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        asked = {signal.SIGINT: self._ask, signal.SIGTERM: self._ask, signal.SIGHUP: lambda number, frame: silence()}
        for number, handler in asked.items():
            try:
                self._before[number] = signal.signal(number, handler)
            except ValueError:
                return

    def restore(self) -> None:
        """Give the signals back to who had them; call it also when training fails."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number, frame):
        now = time.monotonic()
        if self.asked and now - self._asked_at > 1.0:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._asked_at = True, now
            print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        self.asked = _on_any(self.asked, args.device)
        if self.asked:
            control.should_save = control.should_training_stop = True


def _on_any(flag: bool, device: Any) -> bool:
    """Whether any process says so, on every process."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return flag
    box = torch.tensor([int(flag)], device=device)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return bool(box.item())
