"""What the caption bars share: training a recipe to its end, and scoring the run on the test set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.data import data_root

TEST = "translation/multi30k/test_2016_flickr"


def train_run(recipe: Any) -> tuple[Path, list[dict[str, Any]]]:
    """Train `recipe`; its run folder, and what each stage says. An interrupted run interrupts the bar."""
    from core.config.run_folder import RunFolder
    from core.training.run import train

    run = RunFolder.create(recipe)
    result = train(recipe, run)
    if result["status"] != "done":
        raise KeyboardInterrupt
    return run.path, result["stages"]


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
