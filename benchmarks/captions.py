"""The test set of the caption bars, and how a trained run is scored on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.data import data_root

TEST = "translation/multi30k/test_2016_flickr"


def translate_test(run: Path, *, beams: int, limit: int | None = None) -> tuple[Any, float]:
    """Translate test_2016_flickr with the model of `run`, through the pipeline.

    Returns:
        the evaluator's report (cased, detokenised text), and the share of outputs that ended by themselves.
    """
    from apps.translation import TranslationEvaluator, TranslationPipeline, load_data

    examples = load_data(data_root() / TEST, "moses", src="en", tgt="de", limit=limit)
    with TranslationPipeline.from_pretrained(run) as translate:
        sources = [example.src for example in examples]
        settings = {"beams": beams, "max_new_tokens": 80, "max_tokens": 32768, "max_size": 128}
        results = list(translate.batch(sources, src="en", tgt="de", **settings))
    report = TranslationEvaluator(["bleu", "chrf", "empty"]).score([r.text for r in results], examples)
    return report, sum(r.meta["finish_reason"] == "stop" for r in results) / len(results)
