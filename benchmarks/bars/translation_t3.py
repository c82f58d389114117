"""ALMA's first stage must earn its place (Xu et al. 2023): monolingual text before few pairs, against the pairs alone.

2,000 pairs of Multi30k; the monolingual text is the English side of the other 27,000 pairs and 27,000 German captions
that were written independently (task 2 of the same set), each shuffled, so no translation is hidden in it. Without the
task-2 file the other pairs are split into two halves and each gives one language. Both arms start from the same random
weights with the same tokenizer and do the same parallel steps.
"""

from __future__ import annotations

import os
import random
import statistics
from pathlib import Path
from typing import Any

from benchmarks.bar import Bar, Measured, Setting, Unavailable
from benchmarks.captions import train_run, translate_test
from benchmarks.data import read_lines

GAIN, SEEDS, PAIRS, SECONDS = 2.0, (1, 2, 3), 2000, 480
RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "alma_effect.yaml"
SET = "translation/multi30k"


def measure(setting: Setting) -> Measured:
    seeds = SEEDS[:1] if setting.quick else SEEDS
    counts = write_data(setting.work / "data")
    os.environ["T3"] = str(setting.work / "data")
    rows = []
    for seed in seeds:
        arms = {arm: run_arm(arm, seed, setting) for arm in ("pairs", "alma")}
        if arms["pairs"]["parallel_steps"] != arms["alma"]["parallel_steps"]:
            raise RuntimeError(f"the arms did different parallel steps: {arms}")
        rows.append({"seed": seed, **arms})
    scores = {arm: [row[arm]["bleu"] for row in rows] for arm in ("pairs", "alma")}
    gains = [round(alma - pairs, 2) for alma, pairs in zip(scores["alma"], scores["pairs"])]
    gain = statistics.mean(gains)
    return Measured(
        round(gain, 2),
        gain >= GAIN and min(gains) > 0,
        baseline={"BLEU of the pairs alone": scores["pairs"]},
        chance="0 when the first stage teaches nothing",
        details={"gains": gains, "BLEU of both stages": scores["alma"], "lines": counts, "runs": rows},
    )


def run_arm(arm: str, seed: int, setting: Setting) -> dict[str, Any]:
    """Train one arm; its BLEU on test_2016_flickr, and its parallel steps."""
    from core.config.load import parse_yaml, recipe_from

    raw, places = parse_yaml(RECIPE.read_text(encoding="utf-8"), str(RECIPE))
    raw.update(seed=seed, output=str(setting.work / f"{arm}-{seed}"))
    if arm == "pairs":
        raw["stages"] = raw["stages"][1:]
    if setting.quick:
        for part in (raw, *raw["stages"]):
            part["train"] = {**part.get("train", {}), "epochs": 2}
    run, stages = train_run(recipe_from(raw, places))
    report, _ = translate_test(run, beams=1, limit=100 if setting.quick else None)
    return {
        "bleu": round(report.value("bleu"), 2),
        "chrf": round(report.value("chrf"), 2),
        "parallel_steps": stages[-1]["steps"],
        "seconds": round(sum(stage["seconds"] for stage in stages), 1),
    }


def write_data(folder: Path) -> dict[str, int]:
    """The two corpora and one tokenizer for both arms. Returns the number of lines of each file."""
    from core.models.tokenizer import train_bpe

    english, german = read_lines(f"{SET}/train.en"), read_lines(f"{SET}/train.de")
    order = list(range(len(english)))
    random.Random(0).shuffle(order)
    pairs, rest = order[:PAIRS], order[PAIRS:]
    try:
        written = read_lines("translation/multi30k_mono/train.3.de")
        mono = {"en": [english[i] for i in rest], "de": [written[i] for i in rest]}
    except Unavailable:
        half = len(rest) // 2
        mono = {"en": [english[i] for i in rest[:half]], "de": [german[i] for i in rest[half:]]}
    for number, lines in enumerate(mono.values(), 1):
        random.Random(number).shuffle(lines)
    files = {f"mono.{lang}": lines for lang, lines in mono.items()}
    files |= {"pairs.en": [english[i] for i in pairs], "pairs.de": [german[i] for i in pairs]}
    files |= {f"val.{lang}": read_lines(f"{SET}/val.{lang}") for lang in ("en", "de")}
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    texts = [line for name, lines in files.items() if not name.startswith("val") for line in lines]
    train_bpe(texts, 8192).save_pretrained(folder / "tokenizer")
    return {name: len(lines) for name, lines in files.items()}


BAR = Bar(
    "translation.T3",
    "ALMA's two stages against the same parallel steps alone, 3 seeds",
    "BLEU gained",
    f"≥ {GAIN:g}, every seed above 0",
    "gpu",
    8,
    measure,
)
