"""Few-shot against fine-tuning on PubMedQA: shots, LoRA and QLoRA, and what is read, switch by switch.

Every arm answers the same held-out questions (a fifth of the 494), beside always giving the most frequent answer; the
base is a small decoder, and answers are chosen by probability among yes, no and maybe. What is read: nothing, the
question's own abstract, passages found among all abstracts, or the own ones and two of an encyclopedia. The value is
the best arm's accuracy. What a large model does is not claimed: the grid says what each switch does to this base.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT, Bar, Measured, Setting
from benchmarks.data import data_root
from benchmarks.embedding_sets import base_model, placed, trained
from core.config.files import read_json


def measure(setting: Setting) -> Measured:
    lora, qlora = (tuned(setting, name) for name in ("none", "graft:nf4"))
    rows = [{**row, "model": {"base": "base", "tuned": "LoRA"}[row["model"]]} for row in lora]
    rows += [{**row, "model": {"base": "base, NF4", "tuned": "QLoRA"}[row["model"]]} for row in qlora]
    majority, best = rows[0]["majority"], max(rows, key=lambda row: row["accuracy"])
    return Measured(
        best["accuracy"],
        best["accuracy"] >= majority,
        baseline={"most frequent answer": majority},
        chance=33.3,
        details={
            "best arm": f"{best['model']}, reads {best['context']}, {best['shots']} shots",
            "arms": {
                f"{r['model']}, reads {r['context']}, {r['shots']} shots": [r["accuracy"], r["ci95"], r["macro_f1"]]
                for r in rows
            },
            "an arm is": "accuracy, its 95 % interval, macro-F1",
            "mean accuracy": means(rows),
            "finding the own abstract": found(),
            "questions": rows[0]["n"],
        },
    )


def tuned(setting: Setting, quantization: str) -> list[dict[str, Any]]:
    """The arms of the base and of one way to tune it."""
    base = str(base_model("tiny-7m" if setting.quick else "small-22m"))
    os.environ.update(QA_BASE=base, GRAFT_DATA=str(data_root()))
    wiki = placed("lm/web_demo/wiki_demo.txt")
    overrides = [f"model.quantization={quantization}", f"with.encyclopedia={wiki}"]
    if setting.quick:
        overrides += [
            "train.max_steps=2",
            "eval.limit=4",
            "with.limit=8",
            "with.contexts=[none,more]",
            "with.shots=[1]",
        ]
    else:
        overrides += ["with.contexts=[none,own,found,more]"]
    recipe = ROOT / "recipes" / "qa" / "qa_grid.yaml"
    run, _ = trained(recipe, overrides, setting.work / quantization.replace(":", "-"))
    return read_json(Path(run) / "eval" / "grid.json")


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean accuracy of all arms with a switch in a place."""
    places = sorted({(key, row[key]) for row in rows for key in ("model", "context", "shots")}, key=str)
    return {
        f"{key}: {value}": round(sum(own) / len(own), 1)
        for key, value in places
        if (own := [row["accuracy"] for row in rows if row[key] == value])
    }


def found() -> dict[str, float]:
    """BioASQ's document measures of BM25 on the passages of all abstracts, in percent."""
    from apps.qa import QaPipeline, load_data
    from apps.qa.grid import retrieved

    everything = load_data(placed("biomed/pubmedqa/labeled.jsonl"), "pubmedqa")
    test = load_data(placed("biomed/pubmedqa/labeled.jsonl"), "pubmedqa", split="test")
    with QaPipeline.from_pretrained("tiny", engine="tiny") as ask:
        plain = retrieved(ask, test, everything)
    return {name: round(100 * value, 1) for name, value in plain.items()}


BAR = Bar(
    "qa.grid",
    "PubMedQA: shots 0, 1, 10 × base, LoRA, QLoRA × what is read, beside the majority class",
    "% accuracy of the best arm",
    "≥ the most frequent answer's",
    "gpu",
    4,
    measure,
)
