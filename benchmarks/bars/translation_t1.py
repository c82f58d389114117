"""BLEU, chrF, chrF++ and TER, and their signatures, are those that the sacrebleu command prints.

Five small corpora written by hand (`fixtures/t1`: hypothesis, tab, reference), among them Chinese and Japanese; with
the development data also copies of the source as German. A corpus whose tokenizer is not installed is skipped with the
reason, for both sides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.bar import Bar, Measured, Setting, Unavailable
from benchmarks.data import read_lines
from benchmarks.process import run_timed

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "t1"
TOLERANCE = 1e-9
NAMES = {"bleu": "BLEU", "chrf": "chrF2", "chrf++": "chrF2++", "ter": "TER"}
COMMANDS = {"bleu": (), "chrf": (), "chrf++": ("--chrf-word-order", "2"), "ter": ()}


def measure(setting: Setting) -> Measured:
    """Largest difference of any score; a signature that differs fails the bar."""
    largest, compared, different, skipped, floors = 0.0, 0, [], {}, {}
    for name, (lang, hypotheses, references) in corpora().items():
        ours = score(lang, hypotheses, references)
        theirs = command_scores(
            setting.work, lang, hypotheses, references, [m for m in ours if ours[m]["score"] is not None]
        )
        for metric, found in ours.items():
            if found["score"] is None:
                skipped[f"{name} {metric}"] = found["reason"]
                continue
            compared += 1
            largest = max(largest, abs(found["score"] - theirs[metric]["score"]))
            if found["signature"] != theirs[metric]["signature"]:
                different.append([name, metric, found["signature"], theirs[metric]["signature"]])
        if name == "copied source":
            floors = {metric: round(found["score"], 2) for metric, found in ours.items()}
    return Measured(
        largest,
        largest <= TOLERANCE and not different and compared >= 16,
        chance=floors or None,
        details={"compared": compared, "signatures that differ": different, "skipped": skipped},
    )


def corpora() -> dict[str, tuple[str, list[str], list[str]]]:
    """Name → (target language, hypotheses, references)."""
    found = {}
    for file in sorted(FIXTURES.glob("*.tsv")):
        rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
        found[file.stem] = (file.stem, [row[0] for row in rows], [row[1] for row in rows])
    try:
        test = "translation/multi30k/test_2016_flickr"
        found["copied source"] = ("de", read_lines(f"{test}.en"), read_lines(f"{test}.de"))
    except Unavailable:
        pass
    return found


def score(lang: str, hypotheses: list[str], references: list[str]) -> dict[str, dict[str, Any]]:
    """Through the evaluator, as a user gets it."""
    from apps.translation import TranslationEvaluator, TranslationExample

    source = "en" if lang != "en" else "de"
    examples = [TranslationExample("x", reference, source, lang) for reference in references]
    report = TranslationEvaluator(list(NAMES), bootstrap=0).score(hypotheses, examples)
    return {
        name: {
            "score": report.value(name),
            "signature": report.signature.get(name),
            "reason": report.metrics[name].skipped,
        }
        for name in NAMES
    }


def command_scores(
    work: Path, lang: str, hypotheses: list[str], references: list[str], metrics: list[str]
) -> dict[str, dict[str, Any]]:
    """Through `python -m sacrebleu`, one call a metric."""
    files = {"hypotheses": hypotheses, "references": references}
    for name, lines in files.items():
        (work / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    tokenize = {"zh": "zh", "ja": "ja-mecab"}.get(lang, "13a")
    found = {}
    for metric in metrics:
        kind = metric.removesuffix("++")
        options = ["-m", kind, "-w", "14", *(("--tokenize", tokenize) if kind == "bleu" else ()), *COMMANDS[metric]]
        _, said = run_timed("-m", "sacrebleu", str(work / "references"), "-i", str(work / "hypotheses"), *options)
        answer = json.loads(said)
        if answer["name"] != NAMES[metric]:
            raise RuntimeError(f"asked for {metric}, got {answer['name']}")
        found[metric] = answer
    return found


BAR = Bar(
    "translation.T1",
    "scores and signatures equal the sacrebleu command's",
    "largest difference",
    f"≤ {TOLERANCE:g}, all signatures equal",
    "cpu",
    0.5,
    measure,
)
