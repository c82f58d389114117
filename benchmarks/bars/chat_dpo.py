"""DPO on real preference pairs: how often the better of two unseen answers gains more probability than the worse.

300 pairs of instructions with a better and a worse answer, in folds: each pair is judged once, by a model that was
tuned on the others. At the start no answer has gained anything, and guessing is right half of the time; the bar is met
when the share lies above what a coin exceeds once in twenty times. The quick form takes one fold and the beginnings of
the answers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.data import data_root
from benchmarks.domains import model_path

FOLDS, CUT = 3, 240


def measure(setting: Setting) -> Measured:
    """Share of held-out pairs, in percent."""
    runs = [fold(setting, number) for number in range(1 if setting.quick else FOLDS)]
    n = sum(run["held_out"] for run in runs)
    share = sum(run["accuracy"] * run["held_out"] for run in runs) / n
    coin = 50 + 100 * 1.645 * math.sqrt(0.25 / n)
    margin = sum(run["margin"] * run["held_out"] for run in runs) / n
    details = {"held-out pairs": n, "a coin exceeds once in twenty": round(coin, 1), "margin": margin, "runs": runs}
    return Measured(
        round(100 * share, 1), 100 * share > coin and margin > 0, {"at the start": "margin 0"}, 50.0, details
    )


def fold(setting: Setting, number: int) -> dict[str, Any]:
    """One model, tuned on all pairs but those of this fold."""
    rows = json.loads((data_root() / "instruction" / "demo_sets" / "dpo_en_demo.json").read_text(encoding="utf-8"))
    if setting.quick:
        rows = [shortened(row) for row in rows]
    parts = {"train": [r for i, r in enumerate(rows) if i % FOLDS != number], "held": rows[number::FOLDS]}
    sources = {}
    for name, part in parts.items():
        file = setting.work / f"{number}-{name}.json"
        file.write_text(json.dumps(part), encoding="utf-8")
        sources[name] = {"reader": "preferences", "path": str(file)}
    train = {"epochs": 2, "lr": 2e-4, "batch": {"size": 16}}
    return tuned(setting.work / f"fold-{number}", model_path("tiny-7m"), sources, train)


def shortened(row: dict[str, Any]) -> dict[str, Any]:
    """The last question and the beginnings of its answers."""
    question = row["conversations"][-1]
    cut = {side: {**row[side], "value": row[side]["value"][:CUT]} for side in ("chosen", "rejected")}
    return {"conversations": [{**question, "value": question["value"][:CUT]}], **cut}


def tuned(output: Path, model: str, sources: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    """Tune, and read the trainer's figures on the held-out pairs after the last step."""
    from core.config.load import recipe_from
    from core.config.run_folder import RunFolder
    from core.training.run import train as run_recipe

    raw = {
        "app": "chat",
        "output": str(output),
        "model": {"path": model, "dtype": "fp32"},
        "data": {"train": [sources["train"]], "eval": [sources["held"]], "max_length": 1024},
        "method": "chat.dpo",
        "with": {"beta": 0.1},
        "train": {"schedule": "linear", "warmup": 0.1, **train},
        "eval": {"every": 0.5, "select": "loss", "metrics": ["empty"], "retention": False,
                 "sampling": {"max_new_tokens": 1}},
        "checkpoint": {"every": 10_000},
    }  # fmt: skip
    run = RunFolder.create(recipe_from(raw))
    (stage,) = run_recipe(run.recipe(), run)["stages"]
    found = [row["eval"] for row in run.read_metrics() if "eval" in row][-1]
    return {
        "held_out": held_out_count(run),
        "accuracy": found["rewards/accuracies"],
        "margin": found["rewards/margins"],
        "loss": found["loss"],
        "trained_pairs": stage["rows"] - stage["dropped"],
        "steps": stage["steps"],
    }


def held_out_count(run: Any) -> int:
    """Held-out rows of the run."""
    return len((run.eval_dir("after") / "predictions.jsonl").read_text(encoding="utf-8").splitlines())


BAR = Bar(
    "chat.dpo",
    "held-out preference pairs decided rightly after DPO, 300 real pairs in three folds",
    "% right",
    "above chance at 5 %",
    "cpu",
    20,
    measure,
)
