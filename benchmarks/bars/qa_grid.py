"""Few-shot against fine-tuning on PubMedQA: shots, a LoRA adapter and passages, on and off.

Every arm answers the same held-out questions (a fifth of the 494), beside always giving the most frequent answer. Base
is a small decoder; answers are chosen by probability among yes, no and maybe. The value is the best arm's accuracy.
What a large model does is not claimed: the grid says what each switch does to this base, with intervals.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT, Bar, Measured, Setting
from benchmarks.data import data_root
from benchmarks.embedding_sets import base_model, placed, trained

SHOTS = (0, 1, 10)


def measure(setting: Setting) -> Measured:
    from apps.qa import load_data

    file = placed("biomed/pubmedqa/labeled.jsonl")
    test = load_data(file, "pubmedqa", split="test", limit=10 if setting.quick else None)
    solved = load_data(file, "pubmedqa", split="train")
    base, tuned = tune(setting)
    arms: dict[str, Any] = {}
    for who, model in (("base", base), ("tuned", tuned)):
        for template in ("rag", "closed"):
            for shots in (0, 1) if setting.quick else SHOTS:
                name = f"{who}, {'passages' if template == 'rag' else 'no passages'}, {shots} shots"
                arms[name] = answered(model, template, shots, test, solved)
    majority = next(iter(arms.values())).value("majority") or 0.0
    shown = {name: [round(report.value(m) or 0, 1) for m in ("accuracy", "macro_f1")] for name, report in arms.items()}
    spread = {name: [round(v, 1) for v in report.metrics["accuracy"].ci95] for name, report in arms.items()}
    best = max(arms, key=lambda name: arms[name].value("accuracy") or 0.0)
    value = arms[best].value("accuracy") or 0.0
    return Measured(
        round(value, 1),
        value >= majority,
        baseline={"most frequent answer": round(majority, 1)},
        chance=33.3,
        details={
            "best arm": best,
            "accuracy and macro-F1": shown,
            "95 % interval of accuracy": spread,
            "questions": len(test),
        },
    )


def tune(setting: Setting) -> tuple[str, Path]:
    """The base, and a run tuned on the training questions."""
    base = str(base_model("tiny-7m" if setting.quick else "small-22m"))
    os.environ.update(QA_BASE=base, GRAFT_DATA=str(data_root()))
    overrides = ["train.max_steps=2", "eval.every=0", "eval.limit=4"] if setting.quick else ["eval.every=0"]
    run, _ = trained(ROOT / "recipes" / "qa" / "pubmedqa.yaml", overrides, setting.work / "run")
    return base, run


def answered(model: Any, template: str, shots: int, test: list[Any], solved: list[Any]) -> Any:
    """The report of one arm."""
    from apps.qa import QaEvaluator, QaPipeline

    options = {"template": template, "shots": shots, "context_chars": 1500, "shot_chars": 200}
    with QaPipeline.from_pretrained(model, **options) as ask:
        ask.use(solved=solved)
        return QaEvaluator(["accuracy", "macro_f1", "majority"]).score(ask.predict(test), test)


BAR = Bar(
    "qa.grid",
    "PubMedQA: shots 0, 1, 10 × tuned or not × passages or not, beside the majority class",
    "% accuracy of the best arm",
    "≥ the most frequent answer's",
    "gpu",
    6,
    measure,
)
