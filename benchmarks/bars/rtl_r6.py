"""Iteration must earn its place: ITERTL with three iterations against one, on parameters that were never trained on.

A small model learns generated references from scratch; from there both arms train on the same references for the same
steps, with answers that are sampled anew in each iteration, or once. pass@1 is by the strict verdict, greedily. The
quick form does not sample: it measures whether the ranking term orders references above mutants that simulate
differently, against training on the references alone.
"""

from __future__ import annotations

import copy
import statistics
from pathlib import Path
from typing import Any

from benchmarks.bar import Bar, Measured, Setting, Unavailable

GAIN, SEEDS, ITERATIONS = 0.10, (1, 2, 3), 3
RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "itertl_effect.yaml"
ITERATE: dict[str, Any] = {
    "method": "rtl.itertl",
    "with": {"template": "spec", "samples_per_prompt": 4, "temperature": 0.7, "max_new_tokens": 256},
    "train": {"epochs": 3, "lr": 3e-4, "batch": {"size": 32, "unit": "rows"}},
    "verify": {"name": "rtl", "timeout_s": 5},
}


def measure(setting: Setting) -> Measured:
    """Relative rise of pass@1 by iterating, mean over seeds."""
    from core.execution.tools import has

    if setting.quick:
        return _mechanism(setting)
    if not has("iverilog"):
        raise Unavailable("iverilog is not installed (Debian package: iverilog)")
    rows = []
    for seed in SEEDS:
        base, start = _train(setting, "references", seed, None, {})
        row = {"seed": seed, "references": start}
        for name, count in (("once", 1), ("iterated", ITERATIONS)):
            _, row[name] = _train(setting, name, seed, base, {"iterations": count})
        rows.append(row)
    once, iterated = ([row[name]["pass@1"] for row in rows] for name in ("once", "iterated"))
    gain = statistics.mean(iterated) / max(statistics.mean(once), 1e-9) - 1
    apart = min(iterated) > max(once)
    return Measured(
        round(gain, 4),
        gain >= GAIN and apart,
        baseline={
            "pass@1 with one iteration": once,
            "of the references alone": [r["references"]["pass@1"] for r in rows],
        },
        chance="0: a random model writes no module that passes",
        details={"pass@1 iterated": iterated, "ranges apart": apart, "runs": rows},
    )


def _train(setting: Setting, name: str, seed: int, base: str | None, options: dict[str, Any]) -> tuple[str, dict]:
    """Run an arm; its folder, and what the evaluator says afterwards."""
    from core.config.load import parse_yaml, recipe_from
    from core.config.run_folder import RunFolder
    from core.training.run import train

    raw, places = parse_yaml(RECIPE.read_text(encoding="utf-8"), str(RECIPE))
    raw = copy.deepcopy(raw)
    raw.update(seed=seed, output=str(setting.work / f"{name}-{seed}"))
    if base is not None:
        stage = copy.deepcopy(ITERATE)
        raw["verify"] = stage.pop("verify")
        stage["with"].update(options)
        raw["stages"] = [{"name": name, **stage}]
        raw["model"] = {"path": base}
    run = RunFolder.create(recipe_from(raw, places))
    report = train(recipe_from(raw, places), run)["after"]
    return str(run.path), {n: m.value for n, m in report.metrics.items()}


def _mechanism(setting: Setting) -> Measured:
    """Rows for which one step with the ranking term parts right from wrong further than one without it."""
    import torch

    from apps.rtl.methods.sft import row_of
    from apps.rtl.taskgen import tasks
    from core.config.schema import ModelConfig, Recipe, TrainConfig
    from core.data.dataset import EncodedDataset
    from core.data.encode import encode
    from core.models.load import load_model
    from core.models.tokenizer import train_bpe
    from core.training.arguments import training_arguments
    from core.training.verifier_loop import LoopSettings, Scored, ranked_trainer, sequence_logprobs

    examples = list(tasks(13, families=["counter"], seed=3))
    tokenizer = train_bpe([e.text for e in examples], 400)
    rows = [encode(row_of(e, "spec"), tokenizer) for e in examples]
    recipe = Recipe(app="rtl", train=TrainConfig(lr=1e-3))
    sizes = {"micro": 1, "accumulation": 1, "steps": 1, "sequences_a_step": 1}
    parted: dict[str, list[float]] = {}
    for loss in ("none", "rank_margin"):
        cls = ranked_trainer(LoopSettings(iterations=1, samples=1, loss=loss), tokenizer, lambda pairs: [])
        trainer = cls(
            model=load_model(ModelConfig(preset="tiny"), tokenizer, seed=0), train_dataset=EncodedDataset(rows),
            args=training_arguments(recipe, sizes, setting.work / loss, "cpu"), train_config=recipe.train,
        )  # fmt: skip
        # the wrong answer to a specification is the right one to another of the same family
        others = [examples[(i + 1) % len(examples)].reference or "" for i in range(len(examples))]
        trainer.grouped.candidates = [[Scored(tokenizer(t)["input_ids"], t, 0.5)] for t in others]
        start = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        parted[loss] = []
        for index in range(len(rows)):
            batch = trainer.data_collator([trainer.grouped[index]])
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            trainer.model.load_state_dict(start)
            trainer.model.zero_grad()
            trainer.compute_loss(trainer.model, dict(batch)).backward()
            gaps = []
            for _ in range(2):
                with torch.no_grad():
                    sums, counts = sequence_logprobs(trainer.model, inputs, batch["targets"])
                    gaps.append(float((sums / counts)[0] - (sums / counts)[1]))
                    for parameter in trainer.model.parameters():
                        if parameter.grad is not None:
                            parameter -= 1e-3 * parameter.grad
            parted[loss].append(gaps[1] - gaps[0])
    better = sum(a > b for a, b in zip(parted["rank_margin"], parted["none"])) / len(rows)
    return Measured(
        better, better >= 0.9, baseline="a step on the reference alone", chance=0.5,
        details={"quick form": "share of rows that the ranking term parts further in one step"},
    )  # fmt: skip


BAR = Bar(
    "rtl.R6",
    "iteration raises pass@1 on unseen parameters",
    "relative rise",
    f"≥ {GAIN:g}, the ranges of 3 seeds apart",
    "cpu",
    90,
    measure,
)
