"""Experiment trackers besides metrics.jsonl and the report page, through transformers' own integrations.

The page and the JSONL are always there and need nothing. Of the others each is optional: a recipe names it, and a
check says what to install. Their files go into the run folder unless the tracker's own settings say otherwise. W&B
without an account on this machine writes there too (`wandb sync` uploads it later); what else they send anywhere is
theirs and the user's choice. Metrics of the task go to them as those of the loss do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.config.run_folder import RunFolder

FOLDER = "trackers"


def set_up(names: Sequence[str], run: RunFolder, stage: str) -> str:
    """Point the trackers at the run folder, where nothing else is set. Returns the name of the tracked run."""
    folder = run.path.absolute() / FOLDER
    defaults: dict[str, dict[str, Any]] = {
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": folder / "tensorboard" / stage},
        "wandb": {"WANDB_DIR": folder, "WANDB_PROJECT": "graft"},
        "mlflow": {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "MLFLOW_EXPERIMENT_NAME": "graft"},
        "trackio": {"TRACKIO_DIR": folder / "trackio"},
    }
    if not has_wandb_account():
        defaults["wandb"]["WANDB_MODE"] = "offline"
    if names:
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for variable, value in defaults[name].items():
            if variable == "TENSORBOARD_LOGGING_DIR":
                os.environ[variable] = str(value)
            else:
                os.environ.setdefault(variable, str(value))
    return f"{run.path.name}-{stage}"


def close(names: Sequence[str]) -> None:
    """End the tracked run of a stage; W&B would take the next stage's steps for more of the same run."""
    if "wandb" in names:
        import wandb

        wandb.finish()


def has_wandb_account() -> bool:
    """Whether W&B would find a key; without one it asks for it on the terminal, or fails where there is none."""
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return bool(os.environ.get("WANDB_API_KEY")) or (netrc.is_file() and "wandb" in netrc.read_text(errors="replace"))


def report(trainer: Any, values: dict[str, Any]) -> None:
    """Give task metrics to the trackers; nothing without trackers."""
    if trainer is not None and trainer.args.report_to:
        # a log within a step would otherwise be taken for the step's own
        due = trainer.control.should_log
        trainer.log({f"eval_{name}": value for name, value in values.items() if value is not None})
        trainer.control.should_log = due
