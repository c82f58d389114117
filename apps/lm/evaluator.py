"""Bits per byte and perplexity from log-probabilities; bits per byte compares across tokenizers.

Beside them stands the figure of a model that knows only how often each byte occurs in these very texts: the level that
any language model must beat.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from apps.lm.data import TextExample
from core.evaluation.bootstrap import bootstrap_ci
from core.evaluation.evaluator import BaseEvaluator
from core.evaluation.report import Metric, Report


class LmEvaluator(BaseEvaluator):
    """Predictions are {"logprob": nats, "tokens": n, "bytes": n}, one a document."""

    name = "lm"
    primary = "bits_per_byte"
    known = ("bits_per_byte", "perplexity", "byte_entropy")
    lower_is_better = ("bits_per_byte", "perplexity", "byte_entropy")

    def score(self, predictions: Sequence[dict[str, Any]], examples: Sequence[TextExample]) -> Report:
        self.check(predictions, examples)
        stats = np.array([[p["logprob"], p["tokens"], p["bytes"]] for p in predictions], dtype=np.float64)

        def bits(total: np.ndarray) -> float:
            return -total[0] / math.log(2) / max(total[2], 1)

        total, n = stats.sum(0), len(examples)
        metrics = {
            "bits_per_byte": Metric(bits(total), n, bootstrap_ci(stats, bits), " b/B", higher_is_better=False),
            "perplexity": Metric(math.exp(-total[0] / max(total[1], 1)), n, higher_is_better=False),
            "byte_entropy": Metric(byte_entropy([e.text for e in examples]), n, unit=" b/B", higher_is_better=False),
        }
        chosen = {m: metrics[m] for m in self.metrics}
        if "bits_per_byte" in chosen:
            chosen.update(self._by_language(stats, examples, bits))
        rows = [
            {"text": e.text[:200], "bits_per_byte": bits(row), "tokens": int(row[1])} for e, row in zip(examples, stats)
        ]
        worst = sorted(rows, key=lambda row: -row["bits_per_byte"])[:20]
        signature = {"unit": "bits per UTF-8 byte", "first token": "conditioned on end of text"}
        return Report(self.name, chosen, signature, rows, worst, self.metrics[0])

    @staticmethod
    def _by_language(stats: np.ndarray, examples: Sequence[TextExample], bits: Any) -> dict[str, Metric]:
        """The same of each language, where the texts have several."""
        langs = sorted({e.lang for e in examples})
        if len(langs) < 2:
            return {}
        picked = {lang: stats[[e.lang == lang for e in examples]] for lang in langs}
        return {
            f"bits_per_byte/{lang or 'unknown'}": Metric(
                bits(part.sum(0)), len(part), bootstrap_ci(part, bits), " b/B", higher_is_better=False
            )
            for lang, part in picked.items()
        }


def byte_entropy(texts: Sequence[str]) -> float:
    """Entropy in bits of the distribution of single bytes in `texts`: the chance level."""
    counts = Counter(byte for text in texts for byte in text.encode("utf-8"))
    total = sum(counts.values())
    return -sum(c / total * math.log2(c / total) for c in counts.values()) if total else 0.0
