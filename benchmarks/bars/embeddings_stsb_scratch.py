"""STS-B from a decoder of 22M parameters that saw eight million tokens: no pretrained weights of others take part.

The shipped chain `embeddings/embeddings_small`: opened and warmed up on hidden tokens, translations as positive pairs
(captions and news, English and German), then STS-B's training pairs; three seeds, scored on dev. Beside it the chain
without its first stages. TF-IDF's cosine is the floor, and a high one: half of the pairs share most of their words.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from pathlib import Path
from typing import Any

from benchmarks.bar import ROOT, Bar, Measured, Setting
from benchmarks.embedding_runs import arms, pairs_score
from benchmarks.embedding_sets import base_model, lexical_spearman, placed, trained
from core.config.files import write_text

TARGET = 72.0
TRANSLATIONS = ("translation/multi30k/train", "translation/wmt_human_written/deen/train.de-en")
STAGES = {
    "whole": (),
    "no warm-up": ("warm",),
    "graded pairs alone": ("warm", "stage1"),
}


def measure(setting: Setting) -> Measured:
    pairs = prepared(setting.work / "data", 200 if setting.quick else None)
    chosen = {f"whole{seed}": ["whole", f"seed={seed}"] for seed in ((1,) if setting.quick else (1, 2, 3))}
    if not setting.quick:
        chosen |= {name: [name, "seed=1"] for name in STAGES if name != "whole"}
    short = ["train.max_steps=2", "eval.limit=100", "train.batch.size=8"] if setting.quick else []
    runs = arms(setting.work, {name: [*words, *short] for name, words in chosen.items()}, chain)
    found = [run["spearman"] for name, run in runs.items() if name.startswith("whole")]
    value = statistics.mean(found)
    return Measured(
        round(value, 2),
        value >= TARGET,
        baseline={
            "TF-IDF cosine": lexical_spearman(),
            "TF-IDF cosine, weighed on dev itself": lexical_spearman("dev"),
            "base, mean of states": round(pairs_score(base_model()), 2),
        },
        chance=0.0,
        details={
            "seeds": [round(v, 2) for v in found],
            "without stages, seed 1": {n: round(r["spearman"], 2) for n, r in runs.items() if n in STAGES},
            "translation pairs": pairs,
            "seconds of a chain": round(runs["whole1"]["seconds"], 1),
        },
    )


def prepared(folder: Path, limit: int | None) -> int:
    """Write translations and STS-B as the recipe wants them; how many translations."""
    rows = []
    for name in TRANSLATIONS:
        english, german = (
            placed(f"{name}.{lang}").read_text(encoding="utf-8").removesuffix("\n").split("\n") for lang in ("en", "de")
        )
        rows += [{"text": a, "text2": b} for a, b in list(zip(english, german))[:limit] if a.strip() and b.strip()]
    write_text(folder / "pairs.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for split in ("train", "dev"):
        text = placed(f"embeddings/stsb_multi/stsb-en-{split}.csv").read_text(encoding="utf-8")
        write_text(folder / "sts" / f"stsb-en-{split}.csv", text)
    os.environ.update(EMBED_DATA=str(folder), EMBED_BASE=str(base_model()))
    return len(rows)


def chain(work: Path, name: str, words: list[str]) -> dict[str, Any]:
    """Train the recipe without the stages that `words[0]` leaves out; Spearman ×100 on dev, and seconds."""
    from core.evaluation.report import Report

    recipe = ROOT / "recipes" / "embeddings" / "embeddings_small.yaml"
    kept = [stage for stage in stages_of(recipe) if stage["name"] not in STAGES[words[0]]]
    if words[-1] == "train.batch.size=8":
        kept = [{**stage, "train": {}} for stage in kept]
    with open(work / f"{name}.log", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        run, stages = trained(recipe, [f"stages={json.dumps(kept)}", *words[1:]], work / name.replace(" ", "-"))
    value = Report.load(run / "eval" / "after").metrics["spearman"].value
    return {"spearman": value, "seconds": sum(stage["seconds"] for stage in stages)}


def stages_of(recipe: Path) -> list[dict[str, Any]]:
    import yaml

    return yaml.safe_load(recipe.read_text(encoding="utf-8"))["stages"]


BAR = Bar(
    "embeddings.stsb_scratch",
    "STS-B dev from our own small decoder, three seeds",
    "Spearman ×100",
    f"≥ {TARGET:g}, TF-IDF's",
    "gpu",
    4,
    measure,
)
